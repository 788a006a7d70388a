"""torch.ops.heed in Python: against PyTorch's own attention, autograd checks, fake tensors, modules."""

import os
import pathlib
import sys

import pytest
import torch
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
