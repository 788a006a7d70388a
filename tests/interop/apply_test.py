"""heed apply against the formulas of docs/apply.md written a second time, in float64 with PyTorch in Python."""

import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

B, T, H, K, V = 2, 70, 3, 8, 6


def apply(tmp_path, mixer, tensors, *arguments):
    source, target = str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors")
    save_file({name: t.contiguous() for name, t in tensors.items()}, source)
    done = subprocess.run([os.environ["HEED"], "apply", mixer, "--in", source, "--out", target, *arguments],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(target)


def error(y, reference):
    return ((y.double() - reference.double()).norm() / reference.double().norm()).item()


def recurrence(q, k, v, state, decay=None, p=None, r=None, beta=None, u=None, before=False, scale=1.0):
    """Token by token; decay is the logarithm, [B,T,H,1 or K]."""
    outs = []
    for t in range(q.shape[1]):
        a = 1.0 if decay is None else decay[:, t].exp()[..., None]
        kt, vt = k[:, t], v[:, t]
        write = kt[..., None] * vt[..., None, :]
        if before:
            read = state + u[:, :, None] * write
            state = a * state + write
        elif p is not None:
            state = a * state + p[:, t][..., None] * (r[:, t][..., None] * state).sum(-2, keepdim=True) + write
            read = state
        elif beta is not None:
            state = a * state
            miss = vt - (kt[..., None] * state).sum(-2)
            state = state + beta[:, t][..., None, None] * kt[..., None] * miss[..., None, :]
            read = state
        else:
            state = a * state + write
            read = state
        outs.append(scale * (q[:, t][..., None] * read).sum(-2))
    return torch.stack(outs, 1), state


def problem(mixer):
    """Inputs, settings, and a function of the float64 inputs that gives (out, final_state)."""
    torch.manual_seed(1)
    x = {"q": torch.randn(B, T, H, K), "k": torch.randn(B, T, H, K) / K**0.5, "v": torch.randn(B, T, H, V),
         "initial_state": torch.randn(B, H, K, V)}
    s = K**-0.5
    channel, token = -0.3 * torch.rand(B, T, H, K), -0.3 * torch.rand(B, T, H)
    if mixer == "linear-attention":
        return x, [], lambda y: recurrence(y["q"], y["k"], y["v"], y["initial_state"], scale=s)
    if mixer == "retnet":
        a = torch.log(1 - 2.0 ** (-5 - torch.arange(H).double()))[None, None, :, None].expand(B, T, H, 1)
        return x, [], lambda y: recurrence(y["q"], y["k"], y["v"], y["initial_state"], decay=a, scale=s)
    if mixer == "gla":
        x["log_decay"] = channel
        return x, [], lambda y: recurrence(y["q"], y["k"], y["v"], y["initial_state"], decay=y["log_decay"], scale=s)
    if mixer == "deltanet":
        x["beta"] = torch.rand(B, T, H)
        return x, [], lambda y: recurrence(y["q"], y["k"], y["v"], y["initial_state"], beta=y["beta"], scale=s)
    if mixer == "gated-deltanet":
        x["beta"], x["log_decay"] = torch.rand(B, T, H), token
        return x, [], lambda y: recurrence(y["q"], y["k"], y["v"], y["initial_state"],
                                           decay=y["log_decay"][..., None], beta=y["beta"], scale=s)
    if mixer == "dplr":
        x["p"], x["r"], x["log_decay"] = -0.1 * torch.randn(B, T, H, K), 0.3 * torch.randn(B, T, H, K), channel
        return x, [], lambda y: recurrence(y["q"], y["k"], y["v"], y["initial_state"], decay=y["log_decay"],
                                           p=y["p"], r=y["r"], scale=s)
    if mixer == "rwkv6":
        x["r"] = x.pop("q")
        x["log_decay"], x["u"] = channel, torch.randn(H, K)
        return x, [], lambda y: recurrence(y["r"], y["k"], y["v"], y["initial_state"], decay=y["log_decay"],
                                           u=y["u"], before=True)
    assert mixer == "mamba2"
    x = {"x": x["v"], "dt": torch.rand(B, T, H), "A": -2 * torch.rand(H), "B": torch.randn(B, T, 1, K) / 2,
         "C": torch.randn(B, T, 1, K), "D": torch.randn(H), "dt_bias": torch.randn(H),
         "initial_state": x["initial_state"]}

    def mamba2(y):
        d = torch.nn.functional.softplus(y["dt"] + y["dt_bias"])
        out, state = recurrence(y["C"].expand(B, T, H, K), y["B"].expand(B, T, H, K), d[..., None] * y["x"],
                                y["initial_state"], decay=(d * y["A"])[..., None])
        return out + y["D"][:, None] * y["x"], state

    return x, ["--set", "dt_softplus=true"], mamba2


MIXERS = ["linear-attention", "retnet", "gla", "mamba2", "rwkv6", "deltanet", "gated-deltanet", "dplr"]


@pytest.mark.parametrize("mixer", MIXERS)
def test_recurrences(tmp_path, mixer):
    x, settings, reference = problem(mixer)
    out, state = reference({name: t.double() for name, t in x.items()})
    for form in ("naive", "chunked", "recurrent"):
        y = apply(tmp_path, mixer, x, "--form", form, *settings)
        assert error(y["out"], out) <= 2e-6 and error(y["final_state"], state) <= 2e-6, form
    assert error(apply(tmp_path, mixer, x, "--dtype", "bfloat16", *settings)["out"], out) <= 1e-2


@pytest.mark.parametrize("mixer", MIXERS)
def test_gradients_of_recurrences(tmp_path, mixer):
    x, settings, reference = problem(mixer)
    leaves = {name: t.double().requires_grad_() for name, t in x.items()}
    out, state = reference(leaves)
    grads = {"grad_out": torch.randn(out.shape), "grad_final_state": torch.randn(state.shape)}
    ((out * grads["grad_out"]).sum() + (state * grads["grad_final_state"]).sum()).backward()
    y = apply(tmp_path, mixer, {**x, **grads}, "--grad", *settings)
    for name, leaf in leaves.items():
        assert error(y["grad_" + name], leaf.grad) <= 1e-5, name


@pytest.mark.parametrize("causal,window,sinks,cap", [(0, 0, 0, 0), (1, 0, 0, 0), (1, 5, 2, 1.5), (0, 6, 1, 0)])
@pytest.mark.parametrize("mixer", ["softmax", "sigmoid-attention"])
def test_dense_cores(tmp_path, mixer, causal, window, sinks, cap):
    torch.manual_seed(2)
    tq, tk = 13, 29
    x = {"q": torch.randn(1, tq, 4, 8), "k": torch.randn(1, tk, 2, 8), "v": torch.randn(1, tk, 2, 5),
         "key_bias": torch.randn(1, tk, 4), "alibi_slopes": torch.rand(4)}
    x["key_bias"][0, 3] = -float("inf")
    y = {name: t.double() for name, t in x.items()}
    logits = torch.einsum("bihd,bjhd->bhij", y["q"], y["k"].repeat_interleave(2, 2)) * 8**-0.5
    if cap:
        logits = cap * torch.tanh(logits / cap)
    i, j = (torch.arange(tq) + tk - tq)[:, None], torch.arange(tk)[None]
    logits = logits - y["alibi_slopes"][None, :, None, None] * (i - j).abs()
    logits = logits + y["key_bias"].permute(0, 2, 1)[:, :, None]
    seen = torch.ones(tq, tk, dtype=torch.bool)
    if causal:
        seen &= j <= i
    if window:
        seen &= (j < sinks) | ((j > i - window) & ((j < i + window) | bool(causal)))
    logits = logits.masked_fill(~seen, -float("inf"))
    if mixer == "softmax":
        weights = torch.softmax(logits, -1)
    else:
        weights = torch.sigmoid(logits - torch.log(torch.tensor(float(tk))).double())
    out = torch.einsum("bhij,bjhd->bihd", weights, y["v"].repeat_interleave(2, 2))
    settings = [f"causal={'true' if causal else 'false'}", f"window={window}", f"sinks={sinks}", f"soft_cap={cap}"]
    for form in ("naive", "parallel", "recurrent") if causal else ("naive", "parallel"):
        z = apply(tmp_path, mixer, x, "--form", form, *(a for s in settings for a in ("--set", s)))
        assert error(z["out"], out) <= 2e-6, form
        if mixer == "softmax":
            assert error(z["lse"], logits.logsumexp(-1).permute(0, 2, 1)) <= 2e-6, form
