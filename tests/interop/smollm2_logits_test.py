"""SmolLM2 from its GGUF file against transformers reading the same file: logits in one pass and through the
cache, greedy text of ten prompts up to the first tie, and the time that a prompt of 4096 tokens takes, in turns."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

HEED = os.environ.get("HEED", str(pathlib.Path(__file__).resolve().parents[2] / "build/release/bin/heed"))
TIE = 1e-4  # scores closer than this may fall either way
THREADS = os.cpu_count()


def heed(*words):
    done = subprocess.run([HEED, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def gguf():
    models = json.loads(heed("models", "--json").stdout)
    path = next(m["path"] for m in models if m["name"] == "smollm2")
    if not path:
        heed("info", "smollm2")
        models = json.loads(heed("models", "--json").stdout)
        path = next(m["path"] for m in models if m["name"] == "smollm2")
    return pathlib.Path(path)


@pytest.fixture(scope="module")
def reference(gguf):
    from transformers import AutoModelForCausalLM
    torch.set_num_threads(THREADS)
    return AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()


def prompts():
    """Ten pieces of 64 tokens from the repository's own prose: any natural text will do."""
    root = pathlib.Path(__file__).resolve().parents[2]
    text = "\n\n".join(p.read_text() for p in sorted(root.glob("docs/**/*.md")) + [root / "README.md"])
    return re.sub(r"\s+", " ", text)


def test_logits_and_greedy_text(reference, gguf, tmp_path):
    strings, ids = tmp_path / "strings.json", tmp_path / "ids.json"
    strings.write_text(json.dumps([prompts()]))
    heed("tokenize", "smollm2", "--in", strings, "--out", ids)
    tokens = json.loads(ids.read_text())[0]
    assert len(tokens) >= 640
    batch = torch.tensor(tokens[:640]).view(10, 64)
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({"input_ids": batch}, source)

    heed("apply", "model", "--model", "smollm2", "--in", source, "--out", out, "--set", "greedy=32")
    mine = load_file(out)
    with torch.no_grad():
        logits = reference(batch).logits
        # Along our own text: each next score tells whether transformers would have gone the same way.
        scores = reference(torch.cat([batch, mine["tokens"]], 1)).logits[:, 63:-1]
    error = ((mine["logits"] - logits).norm() / logits.norm()).item()
    assert error < 1e-4, error
    for b in range(10):
        for n in range(32):
            two = scores[b, n].topk(2)
            if two.values[0] - two.values[1] < TIE:
                break
            assert two.indices[0] == mine["tokens"][b, n], f"prompt {b}, token {n}"

    heed("apply", "model", "--model", "smollm2", "--in", source, "--out", out, "--set", "cache=true",
         "--set", "prefill=20")
    cached = load_file(out)["logits"]
    assert ((cached - logits).norm() / logits.norm()).item() < 1e-4


def test_prefill_is_as_fast(reference, tmp_path):
    torch.manual_seed(0)
    ids = torch.randint(100, 49000, (1, 4096))
    text = tmp_path / "long.txt"
    words = "the of and to a in that it is was he for on with as his they be at one have this".split()
    text.write_text(" ".join(words[i % len(words)] for i in range(4090)))
    theirs, ours = [], []
    for _ in range(3):
        report = json.loads(heed("generate", "smollm2", "--file", text, "-n", "1", "--json", "--kv-dtype",
                                 "float32", "--threads", THREADS).stdout)
        ours.append(report["prefill_seconds"] * 4096 / report["prompt_tokens"])
        start = time.perf_counter()
        with torch.no_grad():
            reference(ids, logits_to_keep=1)
        theirs.append(time.perf_counter() - start)
    print(f"prefill of 4096 tokens, float32: {min(ours):.2f} s, transformers {min(theirs):.2f} s", file=sys.stderr)
    assert min(ours) <= min(theirs)
