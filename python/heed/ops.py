"""Functions over torch.ops.heed.*; shapes are [B, T, H, D], states [B, H, K, V]."""

from typing import NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor


class LearnState(NamedTuple):
    """What `learn` remembers: a memory [N,H,K,V], its momentum, its bias [N,H,V]; inside a chunk also R and position [N]."""

    memory: Optional[Tensor] = None
    momentum: Optional[Tensor] = None
    bias: Optional[Tensor] = None
    running: Optional[Tensor] = None
    running_bias: Optional[Tensor] = None
    position: Optional[Tensor] = None


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
    weight: Optional[str] = None,
    key_bias: Optional[Tensor] = None,
    q_bias: Optional[Tensor] = None,
    relative_bias: Optional[Tensor] = None,
    relative_scale: Optional[Tensor] = None,
    alibi_slopes: Optional[Tensor] = None,
    cu_seqlens_q: Optional[Tensor] = None,
    cu_seqlens_k: Optional[Tensor] = None,
    head_window: Optional[Tensor] = None,
    head_sinks: Optional[Tensor] = None,
    kv_lengths: Optional[Tensor] = None,
    function: str = "softplus",
    power: float = 1.0,
) -> Tuple[Tensor, Tensor]:
    """Attention of q [B,Tq,Hq,D] over k [B,Tk,Hk,D], v [B,Tk,Hk,Dv]: out [B,Tq,Hq,Dv] and lse [B,Tq,Hq].

    The last query stands at the last key; kv_lengths [B] says how many keys of a sequence count. `weight` is
    "softmax", "sigmoid" (also `sigmoid=True`), "urpe", which takes relative_scale [Hq,2P-1], or "generic", whose
    `function` is "softplus" or "relu" (to a power). Both results are differentiable.
    """
    if weight is None:
        weight = "sigmoid" if sigmoid else "softmax"
    return torch.ops.heed.attend(
        q, k, v, key_bias=key_bias, q_bias=q_bias, relative_bias=relative_bias,
        relative_scale=relative_scale, alibi_slopes=alibi_slopes, cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k, head_window=head_window, head_sinks=head_sinks, causal=causal,
        scale=scale, window=window, sinks=sinks, soft_cap=soft_cap, weight=weight, bias=bias,
        kv_lengths=kv_lengths, function=function, power=power)


def merge(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> Tuple[Tensor, Tensor]:
    """Softmax attention over the union of disjoint sets of keys, from each set's (out, lse)."""
    return torch.ops.heed.merge(list(outs), list(lses))


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


def ewscan(
    log_decay: Tensor,
    x: Tensor,
    *,
    turn: Optional[Tensor] = None,
    initial_state: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
) -> Tuple[Tensor, Tensor]:
    """h_t = exp(log_decay_t) h_{t-1} + x_t per channel: all states, as x, and the last, [N,C].

    log_decay is [B,T,C] or [C]. Complex states are pairs: x [B,T,C,2], the decay turned by `turn` [B,T,C,2] or [C,2].
    """
    return torch.ops.heed.ewscan(log_decay, x, turn=turn, initial_state=initial_state, cu_seqlens=cu_seqlens)


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Optional[Tensor] = None,
    z: Optional[Tensor] = None,
    dt_bias: Optional[Tensor] = None,
    initial_state: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    dt_softplus: bool = False,
) -> Tuple[Tensor, Tensor]:
    """Mamba's scan of x, dt [B,T,C], A [C,K], B and C [B,T,G,K] or [B,T,K]: out [B,T,C] and final_state [N,C,K]."""
    B, C = (y.unsqueeze(2) if y.dim() == 3 else y for y in (B, C))
    return torch.ops.heed.selective_scan(
        x, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, initial_state=initial_state, cu_seqlens=cu_seqlens,
        dt_softplus=dt_softplus)


def lse_scan(
    score: Tensor,
    v: Tensor,
    *,
    log_decay: Optional[Tensor] = None,
    initial: Optional[Tuple[Tensor, Tensor, Tensor]] = None,
    cu_seqlens: Optional[Tensor] = None,
) -> Tuple[Tensor, Tuple[Tensor, Tensor, Tensor]]:
    """The average of v [B,T,H,V] so far, weighted by the softmax of score [B,T,H]: out and the state (m, u, w)."""
    m, u, w = (None, None, None) if initial is None else initial
    out, m, u, w = torch.ops.heed.lse_scan(
        score, v, log_decay=log_decay, initial_m=m, initial_u=u, initial_w=w, cu_seqlens=cu_seqlens)
    return out, (m, u, w)


def short_conv(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Optional[Tensor] = None,
    initial_state: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    ahead: int = 0,
    silu: bool = False,
) -> Tuple[Tensor, Tensor]:
    """Depthwise convolution over tokens of x [B,T,C]: out and the last L-1 inputs. weight is [C,L] or [B,T,H,L].

    The last tap meets the current token; `ahead` moves the kernel towards later ones ((L-1)/2: centred).
    """
    return torch.ops.heed.short_conv(
        x, weight, bias=bias, initial_state=initial_state, cu_seqlens=cu_seqlens, ahead=ahead, silu=silu)


def pool(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_weight: Optional[Tensor] = None,
    row_scale: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
    scale: float = 1.0,
    a0: float = 1.0,
    a1: float = 0.0,
    b0: float = 0.0,
    b1: float = 0.0,
    eps: float = 0.0,
    by_count: bool = False,
    clamp: bool = False,
) -> Tensor:
    """Pooled read of features q [B,T,H,M] over k [B,S,J,M], v [B,S,J,V], not causal: out [B,T,H,V].

    With S = sum k^T v, d = c q.sum k, c = scale (by_count: scale / keys), D = d + eps (clamp: max(d, eps)):
    row_scale ((a0 + a1 / D) c q S + (b0 + b1 d) mean v). Normalised linear attention: a0 = 0, a1 = 1.
    """
    return torch.ops.heed.pool(
        q, k, v, key_weight=key_weight, row_scale=row_scale, cu_seqlens=cu_seqlens, scale=scale, a0=a0, a1=a1,
        b0=b0, b1=b1, eps=eps, by_count=by_count, clamp=clamp)


def learn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    alpha: Optional[Tensor] = None,
    eta: Optional[Tensor] = None,
    theta: Optional[Tensor] = None,
    gain: Optional[Tensor] = None,
    norm_weight: Optional[Tensor] = None,
    norm_bias: Optional[Tensor] = None,
    initial: Optional[LearnState] = None,
    cu_seqlens: Optional[Tensor] = None,
    scale: float = 1.0,
    eps: float = 1e-6,
    chunk: int = 1,
    norm: bool = False,
    bias: bool = False,
) -> Tuple[Tensor, LearnState]:
    """A memory that is trained while it is read (Titans, TTT-linear): out [B,T,H,V] and the state after it.

    Z_i = eta Z_{i-1} - theta k^T dloss(k M*), M_i = (1 - alpha) M_{i-1} + Z_i, out = scale q M_i, with q, k [B,T,H,K],
    v [B,T,H,V], gates [B,T,H] and M* the memory at the start of a chunk. The loss is the square of the error or,
    with `norm`, half of it behind a layer norm (norm_weight, norm_bias [H,V]). An `initial` state with a `position` [N]
    may stand inside a chunk, and so may the one that comes back.
    """
    given = LearnState() if initial is None else initial
    out, *state = torch.ops.heed.learn(
        q, k, v, alpha=alpha, eta=eta, theta=theta, gain=gain, norm_weight=norm_weight, norm_bias=norm_bias,
        initial_state=given.memory, initial_momentum=given.momentum, initial_bias=given.bias,
        initial_running=given.running, initial_running_bias=given.running_bias, initial_position=given.position,
        cu_seqlens=cu_seqlens, scale=scale, eps=eps, chunk=chunk, norm=norm, bias=bias)
    after = LearnState(*state)
    if eta is None:
        after = after._replace(momentum=None)
    if not bias:
        after = after._replace(bias=None, running_bias=None)
    if given.position is None:
        after = after._replace(running=None, running_bias=None, position=None)
    return out, after
