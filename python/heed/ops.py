"""Functions over torch.ops.heed.*; shapes are [B, T, H, D], states [B, H, K, V]."""

from typing import Optional, Tuple

import torch
from torch import Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: Optional[float] = None,
    window: int = 0,
    sinks: int = 0,
    soft_cap: float = 0.0,
    sigmoid: bool = False,
    bias: Optional[float] = None,
    key_bias: Optional[Tensor] = None,
    alibi_slopes: Optional[Tensor] = None,
    cu_seqlens_q: Optional[Tensor] = None,
    cu_seqlens_k: Optional[Tensor] = None,
    head_window: Optional[Tensor] = None,
    head_sinks: Optional[Tensor] = None,
) -> Tuple[Tensor, Tensor]:
    """Attention of q [B,Tq,Hq,D] over k [B,Tk,Hk,D], v [B,Tk,Hk,Dv]: out [B,Tq,Hq,Dv] and lse [B,Tq,Hq].

    The last query stands at the last key. `lse` takes no gradient.
    """
    return torch.ops.heed.attend(
        q, k, v, key_bias=key_bias, alibi_slopes=alibi_slopes, cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k, head_window=head_window, head_sinks=head_sinks, causal=causal,
        scale=scale, window=window, sinks=sinks, soft_cap=soft_cap, sigmoid=sigmoid, bias=bias)


def scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    p: Optional[Tensor] = None,
    r: Optional[Tensor] = None,
    beta: Optional[Tensor] = None,
    log_decay: Optional[Tensor] = None,
    bonus: Optional[Tensor] = None,
    initial_state: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    scale: Optional[float] = None,
    read_before: bool = False,
    chunk: int = 64,
) -> Tuple[Tensor, Tensor]:
    """Matrix-state recurrence: out [B,T,H,V] and final_state [B,H,K,V]; scale defaults to K^-0.5.

    log_decay is [H], [B,T,H] or [B,T,H,K]; beta [B,T,H] makes it a delta rule, p and r [B,T,H,K] a general one.
    """
    return torch.ops.heed.scan(
        q, k, v, p=p, r=r, beta=beta, log_decay=log_decay, bonus=bonus, initial_state=initial_state,
        cu_seqlens=cu_seqlens, scale=q.shape[-1] ** -0.5 if scale is None else scale,
        read_before=read_before, chunk=chunk)


def scan_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    *,
    p: Optional[Tensor] = None,
    r: Optional[Tensor] = None,
    beta: Optional[Tensor] = None,
    log_decay: Optional[Tensor] = None,
    bonus: Optional[Tensor] = None,
    scale: Optional[float] = None,
    read_before: bool = False,
) -> Tensor:
    """One token a sequence; `state` [B,H,K,V] float32 is updated in place. Not differentiable."""
    return torch.ops.heed.scan_step(
        q, k, v, state, p=p, r=r, beta=beta, log_decay=log_decay, bonus=bonus,
        scale=q.shape[-1] ** -0.5 if scale is None else scale, read_before=read_before)
