"""GGUF files of every architecture that Heed reads, written by the `gguf` package from the fixtures' weights."""

import os
import pathlib
import subprocess

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig

HEED = os.environ.get("HEED", str(pathlib.Path(__file__).resolve().parents[2] / "build/release/bin/heed"))
FIXTURES = pathlib.Path(__file__).parents[1] / "model" / "fixtures"
MODULES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
           "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
           "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
           "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
           "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
           "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
           "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
           "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}


def interleave(rows, heads):
    """The row order that GGUF gives Llama's q and k (llama.cpp, convert_hf_to_gguf.py, permute)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write(name, arch, path):
    config = AutoConfig.from_pretrained(FIXTURES / name)
    w = gguf.GGUFWriter(str(path), arch)
    gpt2 = arch == "gpt2"
    w.add_block_count(config.num_hidden_layers)
    w.add_embedding_length(config.hidden_size)
    w.add_feed_forward_length(4 * config.hidden_size if gpt2 else config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_context_length(config.max_position_embeddings)
    if gpt2:
        w.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        w.add_head_count_kv(config.num_key_value_heads)
        w.add_layer_norm_rms_eps(config.rms_norm_eps)
        w.add_rope_freq_base(config.rope_parameters["rope_theta"])
        w.add_key_length(config.head_dim)
        w.add_value_length(config.head_dim)
    if name == "llama":  # llama3's scaling travels as divisors
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        plain = config.rope_parameters["rope_theta"] ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
        w.add_tensor("rope_freqs.weight", (plain / scaled.numpy()).astype(np.float32))
    for key, value in load_file(FIXTURES / name / "model.safetensors").items():
        parts = key.split(".")
        number = next((p for p in parts if p.isdigit()), None)
        module = ".".join(parts[parts.index(number) + 1:-1]) if number else ".".join(parts[:-1])
        if gpt2 and value.ndim == 2 and number:
            value = value.T
        if arch == "llama" and module in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
            value = interleave(value, heads)
        block = f"blk.{number}." if number else ""
        w.add_tensor(f"{block}{MODULES[module]}.{parts[-1]}", np.ascontiguousarray(value, dtype=np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


@pytest.mark.parametrize("name,arch", [("llama", "llama"), ("llama-biases", "llama"), ("qwen3", "qwen3"),
                                       ("gpt2", "gpt2")])
def test_logits(name, arch, tmp_path):
    write(name, arch, tmp_path / "model.gguf")
    expected = load_file(FIXTURES / name / "expected.safetensors")
    save_file({"input_ids": expected["input_ids"]}, tmp_path / "in.safetensors")
    done = subprocess.run([HEED, "apply", "model", "--model", tmp_path / "model.gguf", "--in",
                           tmp_path / "in.safetensors", "--out", tmp_path / "out.safetensors"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logits = load_file(tmp_path / "out.safetensors")["logits"]
    assert np.linalg.norm(logits - expected["logits"]) < 1e-4 * np.linalg.norm(expected["logits"])
