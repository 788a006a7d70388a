"""Modules over the operators: the layers of Heed's models, with the same names of weights.

They are written in Python, for libheed_torch.so holds operators alone; tests/interop/operators_test.py compares
them with the layers in C++ (src/mixer/softmax.cc, src/mixer/gla.cc), weight for weight.
"""

from typing import Optional

import torch
from torch import Tensor, nn

from . import ops


class Attention(nn.Module):
    """Self-attention x [B,T,C] -> [B,T,C] with grouped KV heads; sinks + window, rotary positions if asked for.

    rope_base (Llama's is 10000) rotates the halves of every query and key by its position.
    """

    def __init__(self, hidden: int, heads: int, kv_heads: Optional[int] = None, *, causal: bool = True,
                 window: int = 0, sinks: int = 0, rope_base: Optional[float] = None):
        super().__init__()
        kv_heads = kv_heads or heads
        if hidden % heads or heads % kv_heads:
            raise ValueError(f"hidden {hidden}, heads {heads} and kv_heads {kv_heads} must divide each other")
        if rope_base is not None and hidden // heads % 2:
            raise ValueError(f"rotary positions need heads of an even size, not {hidden // heads}")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, hidden // heads
        self.rope_base = rope_base
        self.causal, self.window, self.sinks = causal, window, sinks
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.heads, self.head_dim)
        k = self.k_proj(x).view(b, t, self.kv_heads, self.head_dim)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.head_dim)
        if self.rope_base is not None:
            q, k = self.rotate(q), self.rotate(k)
        out, _ = ops.attend(q, k, v, causal=self.causal, window=self.window, sinks=self.sinks)
        return self.o_proj(out.reshape(b, t, -1))

    def rotate(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        rate = self.rope_base ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
        angle = torch.arange(x.shape[1], device=x.device)[:, None, None] * rate
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class GatedLinearAttention(nn.Module):
    """GLA (arXiv 2312.06635): x [B,T,C] -> [B,T,C] with a decay per key channel."""

    def __init__(self, hidden: int, heads: int, expand_k: float = 0.5, gate_rank: int = 16):
        super().__init__()
        self.heads = heads
        key, value = int(hidden * expand_k), hidden
        if key % heads or value % heads:
            raise ValueError(f"{heads} heads do not divide the widths {key} and {value}")
        self.q_proj = nn.Linear(hidden, key, bias=False)
        self.k_proj = nn.Linear(hidden, key, bias=False)
        self.v_proj = nn.Linear(hidden, value, bias=False)
        self.g_proj = nn.Linear(hidden, value, bias=False)
        self.gk_proj = nn.Sequential(nn.Linear(hidden, gate_rank, bias=False), nn.Linear(gate_rank, key))
        self.g_norm = nn.RMSNorm(value // heads, eps=1e-5)
        self.o_proj = nn.Linear(value, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        split = lambda y: y.unflatten(-1, (self.heads, -1))  # noqa: E731
        log_decay = nn.functional.logsigmoid(self.gk_proj(x).float()) / 16
        out, _ = ops.scan(split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x)),
                          log_decay=split(log_decay))
        gate = torch.nn.functional.silu(self.g_proj(x))
        return self.o_proj(self.g_norm(out).flatten(2) * gate)
