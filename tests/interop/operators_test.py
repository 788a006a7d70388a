"""torch.ops.heed in Python: against PyTorch's own attention, autograd checks, fake tensors, modules."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import library as torch_library

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python"))
if "HEED" in os.environ:  # the program of the build that is tested; the library lies beside it
    library = pathlib.Path(os.environ["HEED"]).resolve().parents[1] / "lib" / "libheed_torch.so"
    os.environ.setdefault("HEED_TORCH_LIBRARY", str(library))
import heed  # noqa: E402


def error(y, reference):
    return ((y.double() - reference.double()).norm() / reference.double().norm()).item()


@pytest.mark.parametrize("dtype,forward,backward", [(torch.float32, 2e-6, 1e-5), (torch.bfloat16, 6e-3, 1.5e-2)])
@pytest.mark.parametrize("causal", [False, True])
def test_attend_is_pytorchs_attention(dtype, forward, backward, causal):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 130, h, 64).to(dtype).requires_grad_() for h in (6, 2, 2))
    out, lse = heed.ops.attend(q, k, v, causal=causal)
    grad = torch.randn_like(out)
    grads = torch.autograd.grad(out, (q, k, v), grad)
    x = [t.detach().double().requires_grad_() for t in (q, k, v)]
    reference = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in x), is_causal=causal, enable_gqa=True).transpose(1, 2)
    assert error(out, reference) <= forward
    for g, r in zip(grads, torch.autograd.grad(reference, x, grad.double())):
        assert g.dtype == dtype
        assert error(g, r) <= backward
    assert lse.shape == (2, 130, 6) and lse.dtype == torch.float32


def test_opcheck():
    q, k, v = (torch.randn(1, 9, h, 8, requires_grad=True) for h in (4, 2, 2))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch_library.opcheck(torch.ops.heed.attend, (q, k, v), {"causal": True}, test_utils=tests)
    k2, v2 = (torch.randn(1, 9, 4, 8, requires_grad=True) for _ in range(2))
    torch_library.opcheck(torch.ops.heed.scan, (q, k2, v2), {"log_decay": -torch.rand(1, 9, 4, 8)}, test_utils=tests)


def test_scan_steps_equal_one_pass():
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, 20, 3, d) for d in (16, 16, 8))
    k = torch.nn.functional.normalize(k, dim=-1)
    beta, log_decay = torch.rand(2, 20, 3), -torch.rand(2, 20, 3)
    out, last = heed.ops.scan(q, k, v, beta=beta, log_decay=log_decay)
    state = torch.zeros(2, 3, 16, 8)
    steps = [heed.ops.scan_step(q[:, t:t + 1], k[:, t:t + 1], v[:, t:t + 1], state, beta=beta[:, t:t + 1],
                                log_decay=log_decay[:, t:t + 1]) for t in range(20)]
    assert error(torch.cat(steps, 1), out) <= 2e-6
    assert error(state, last) <= 2e-6


@pytest.mark.parametrize("module", [lambda: heed.nn.Attention(48, 4, 2, window=5, sinks=1),
                                    lambda: heed.nn.GatedLinearAttention(48, 3)])
def test_modules_train_and_are_causal(module):
    torch.manual_seed(2)
    layer = module()
    x = torch.randn(2, 17, 48)
    y = layer(x)
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    changed = x.clone()
    changed[:, 9:] = 0
    torch.testing.assert_close(layer(changed)[:, :9], y[:, :9])


def norm_gradient(z, v, w, b):
    x = (z - z.mean(-1, keepdim=True)) / (z.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    u = (w * x + b - v) * w
    slope = u - u.mean(-1, keepdim=True) - x * (u * x).mean(-1, keepdim=True)
    return slope / (z.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()


@pytest.mark.parametrize("kind", ["titans", "ttt"])
def test_learn_is_its_recurrence_and_goes_on(kind):
    torch.manual_seed(3)
    batch, tokens, heads, width, chunk = 2, 22, 3, 6, 4
    q, k, v = (torch.randn(batch, tokens, heads, width) for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1)
    gates = {name: 0.1 + 0.5 * torch.rand(batch, tokens, heads) for name in ("alpha", "eta", "theta", "gain")}
    options = {"chunk": chunk, "theta": gates["theta"]}
    if kind == "titans":
        options |= {"alpha": gates["alpha"], "eta": gates["eta"]}
    else:
        options |= {"gain": gates["gain"], "norm": True, "norm_weight": 1 + 0.1 * torch.randn(heads, width),
                    "norm_bias": 0.1 * torch.randn(heads, width)}
    out, last = heed.ops.learn(q, k, v, **options)

    x = {n: t.double() if isinstance(t, torch.Tensor) else t for n, t in options.items()}
    memory = momentum = start = running = torch.zeros(batch, heads, width, width, dtype=torch.float64)
    outs = []
    for t in range(tokens):
        if t % chunk == 0:
            start = running = memory
        kt, vt = k[:, t].double(), v[:, t].double()
        z = (kt[..., None] * start).sum(-2)
        slope = norm_gradient(z, vt, x["norm_weight"], x["norm_bias"]) if kind == "ttt" else 2 * (z - vt)
        change = -x["theta"][:, t, :, None, None] * kt[..., None] * slope[..., None, :]
        if kind == "titans":
            momentum = x["eta"][:, t, :, None, None] * momentum + change
            running = (1 - x["alpha"][:, t, :, None, None]) * running + momentum
            memory = running
        else:
            running = running + change
            memory = start + x["gain"][:, t, :, None, None] * (running - start)
        outs.append((q[:, t].double()[..., None] * memory).sum(-2))
    assert error(out, torch.stack(outs, 1)) <= 2e-6
    assert error(last.memory, memory) <= 2e-6
    assert (last.momentum is not None) == (kind == "titans") and last.bias is None and last.position is None

    # In two parts that are cut inside a chunk.
    parts, state = [], heed.ops.LearnState(
        torch.zeros(batch, heads, width, width), torch.zeros(batch, heads, width, width) if kind == "titans" else None,
        None, torch.zeros(batch, heads, width, width), None, torch.zeros(batch))
    for tokens_of in (slice(0, 10), slice(10, None)):
        cut = {n: t[:, tokens_of] if isinstance(t, torch.Tensor) and t.dim() == 3 else t for n, t in options.items()}
        part, state = heed.ops.learn(q[:, tokens_of], k[:, tokens_of], v[:, tokens_of], initial=state, **cut)
        parts.append(part)
    assert error(torch.cat(parts, 1), out) <= 2e-6
    assert state.position.tolist() == [tokens % chunk] * batch


def test_short_conv_is_conv1d():
    torch.manual_seed(4)
    x, weight = torch.randn(2, 30, 10, requires_grad=True), torch.randn(10, 4, requires_grad=True)
    out, last = heed.ops.short_conv(x, weight, silu=True)
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    padded = torch.nn.functional.pad(wide[0].transpose(1, 2), (3, 0))
    reference = torch.nn.functional.silu(torch.nn.functional.conv1d(padded, wide[1][:, None], groups=10)).transpose(1, 2)
    assert error(out, reference) <= 2e-6
    assert torch.equal(last, x[:, -3:])
    grad = torch.randn_like(out)
    for g, r in zip(torch.autograd.grad(out, (x, weight), grad), torch.autograd.grad(reference, wide, grad.double())):
        assert error(g, r) <= 1e-5


CONFIG = """
out = "{out}"
[model]
hidden = 32
intermediate = 64
layers = 2
heads = 2
kv_heads = 1
head_dim = 16
mixers = {{ "1" = {{ mixer = "gla", options = {{}} }} }}
[tokenizer]
vocab_size = 300
[data]
train = ["{text}"]
length = 64
[train]
steps = 2
rows = 2
warmup = 1
[validation]
rows = 1
"""


@pytest.mark.skipif("HEED" not in os.environ, reason="the program makes the model and runs it")
def test_modules_are_the_layers_of_the_program(tmp_path):
    text = pathlib.Path(__file__).resolve().parents[1] / "data" / "books.txt"
    (tmp_path / "config.toml").write_text(CONFIG.format(out=tmp_path / "run", text=text))
    model = tmp_path / "run" / "model"

    def run(*arguments):
        done = subprocess.run([os.environ["HEED"], *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run("train", tmp_path / "config.toml", "--set", f"records={tmp_path / 'records.sqlite'}")
    torch.manual_seed(5)
    ids = torch.randint(300, (1, 40))
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    run("apply", "model", "--model", model, "--in", tmp_path / "ids.safetensors", "--out", tmp_path / "out.safetensors")
    logits = load_file(tmp_path / "out.safetensors")["logits"]

    weights = load_file(model / "model.safetensors")
    norm = lambda x, name: torch.nn.functional.rms_norm(x, (32,), weights[name], 1e-5)  # noqa: E731
    x = weights["model.embed_tokens.weight"][ids]
    for i, layer in enumerate((heed.nn.Attention(32, 2, 1, rope_base=10000.0), heed.nn.GatedLinearAttention(32, 2))):
        prefix = f"model.layers.{i}."
        own = {name[len(prefix):].split(".", 1)[1]: t for name, t in weights.items()
               if name.startswith((prefix + "self_attn.", prefix + "mixer."))}
        layer.load_state_dict(own)  # strict: the names are those of the program
        x = x + layer(norm(x, prefix + "input_layernorm.weight"))
        y = norm(x, prefix + "post_attention_layernorm.weight")
        gate, up, down = (weights[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x + (torch.nn.functional.silu(y @ gate.T) * (y @ up.T)) @ down.T
    expected = norm(x, "model.norm.weight") @ weights["model.embed_tokens.weight"].T
    assert error(logits.view_as(expected), expected) <= 1e-5
