"""Fresh random checkpoints of every family: what transformers writes Heed reads, and what Heed writes
transformers reads, with the same logits."""

import os
import pathlib
import subprocess

import pytest
import torch
from make_model_fixtures import MODELS, make
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HEED = os.environ.get("HEED", str(pathlib.Path(__file__).resolve().parents[2] / "build/release/bin/heed"))


@pytest.mark.parametrize("name", MODELS)
def test_logits(name, tmp_path):
    make(name, tmp_path / "model", seed=11)
    expected = load_file(tmp_path / "model" / "expected.safetensors")
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({"input_ids": expected["input_ids"]}, source)
    for settings in ([], ["--set", "cache=true"], ["--set", "cache=true", "--set", "prefill=1"]):
        done = subprocess.run([HEED, "apply", "model", "--model", tmp_path / "model", "--in", source, "--out", out,
                               *settings], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        logits = load_file(out)["logits"]
        assert (logits - expected["logits"]).norm() / expected["logits"].norm() < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_what_heed_writes(name, tmp_path):
    """The test program test_model writes every fixture again, and leaves a copy where HEED_KEEP says."""
    program = pathlib.Path(HEED).parent / "test_model"
    if not program.exists():
        pytest.skip("test_model is not built")
    filter_name = "Model/Family.WrittenFoldersReadBackBitForBit/" + name.replace("-", "_")
    done = subprocess.run([program, f"--gtest_filter={filter_name}"], capture_output=True, text=True,
                          env={**os.environ, "HEED_KEEP": str(tmp_path)})
    assert done.returncode == 0, done.stdout
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32,
                                                         attn_implementation="eager", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    expected = load_file(pathlib.Path(__file__).parents[1] / "model" / "fixtures" / name / "expected.safetensors")
    with torch.no_grad():
        logits = model(expected["input_ids"], use_cache=False).logits
    assert (logits - expected["logits"]).norm() / expected["logits"].norm() < 1e-4
