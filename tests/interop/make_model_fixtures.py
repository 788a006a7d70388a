"""Makes tests/model/fixtures: tiny random checkpoints of every family, written by transformers, with the
logits that transformers computes. Run it with an environment that has torch and transformers:

    python tests/interop/make_model_fixtures.py [FOLDER]
"""

import pathlib
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import (GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig,
                          MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

SMALL = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.25, bos_token_id=1,
             eos_token_id=2, attn_implementation="eager")


def rope(kind, **more):
    return {"rope_type": kind, "rope_theta": 500.0, **more}


def llama(**more):
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, **more}))


MODELS = {
    "llama": lambda: llama(tie_word_embeddings=True, rope_parameters=rope(
        "llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)),
    "llama-biases": lambda: llama(attention_bias=True, mlp_bias=True, head_dim=12, num_key_value_heads=4),
    "llama-linear": lambda: llama(num_hidden_layers=1, rope_parameters=rope("linear", factor=2.0)),
    "llama-dynamic": lambda: llama(num_hidden_layers=1, max_position_embeddings=16,
                                   rope_parameters=rope("dynamic", factor=2.0)),
    "llama-yarn": lambda: llama(num_hidden_layers=1, rope_parameters=rope(
        "yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama-longrope": lambda: llama(num_hidden_layers=1, rope_parameters=rope(
        "longrope", factor=4.0, original_max_position_embeddings=16, short_factor=[1.0, 1.1, 1.2, 1.3],
        long_factor=[1.0, 1.5, 2.5, 4.0])),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=7)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(
        **{**SMALL, "num_hidden_layers": 3}, use_sliding_window=True, sliding_window=6, max_window_layers=1)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=16)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.25, bos_token_id=1,
        eos_token_id=2, attn_implementation="eager")),
    "llama-sharded-bf16": lambda: llama(num_hidden_layers=3),
}


def make(name, folder, seed=0):
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    for key, parameter in model.named_parameters():  # nothing stays at 0 or 1
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    if name.endswith("bf16"):
        model = model.to(torch.bfloat16)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, **({"max_shard_size": "20KB"} if "sharded" in name else {}))
    model = type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.randint(0, 64, (2, 30))
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    save_file({"input_ids": ids, "logits": logits.contiguous()}, folder / "expected.safetensors")


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else
                        pathlib.Path(__file__).resolve().parents[1] / "model" / "fixtures")
    for name in MODELS:
        make(name, root / name)


if __name__ == "__main__":
    main()
