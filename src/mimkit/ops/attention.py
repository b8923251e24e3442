"""The transformer block that all plain encoders and decoders share (pre-norm; Vaswani et al. 2017, Dosovitskiy et
al. 2021).

Names of parameters follow the published checkpoints (`norm1`, `attn.qkv`, `attn.proj`, `mlp.fc1`, ...), so that reading
them needs few rules. Attention runs through torch's fused kernel, but for short bf16 sequences in training on a CPU
(`attend`); the probabilities, which the analyses need, come from `Attention.probabilities`, a slice of queries at a
time.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimkit.ops.linear import Linear, after_gelu, linear

LAYER_NORM_EPS = 1e-6
SHORT = (
    256  # tokens: up to here keeping the probabilities (bf16) costs less memory than one MLP's activations
)
MARKS = 8  # channels: the fused kernels of GPUs want heads of a multiple

Bias = Tensor | Callable[[Tensor], Tensor]
"""What is added to the scaled scores: broadcastable to (B, H, N, N), bool where a query may look at a key or float; or
a function of the queries (B, H, N, D), before scaling, that gives it (`ops.relative.decomposed`)."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, bias: Bias | None = None
) -> Tensor:
    """softmax(q k' / sqrt(D) + bias) v over (B, H, N, D): torch's fused kernel, or `ShortAttention` where that is
    faster.

    key_mask: bool (B, N), false for keys that nobody may look at.
    """
    if key_mask is not None and bias is not None:
        return _attend_marked(q, k, v, key_mask, bias)
    added = _added(q, key_mask, bias)
    training = torch.is_grad_enabled() and q.requires_grad
    if added is None and training and q.is_cpu and q.dtype == torch.bfloat16 and k.shape[2] <= SHORT:
        return ShortAttention.apply(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=added)


def _attend_marked(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor, bias: Bias) -> Tensor:
    """`attend` with both: keys to leave out are marked in channels of their own, which takes their scores so low that
    their probability is exactly 0. So a bias that images share needs no copy for each of their masks: 403 MB an image
    at 64 x 64 positions, 12 heads and bf16. A row that may look at no key looks at all.
    """
    width = q.shape[-1]
    low = torch.finfo(k.dtype).min / 16  # no sum of it and a score overflows
    mark = torch.zeros_like(key_mask, dtype=k.dtype).masked_fill(~key_mask, low)[
        :, None, :, None
    ]  # (B, 1, N, 1)
    k = torch.cat([k, mark.expand(*k.shape[:3], MARKS)], -1)
    y = F.scaled_dot_product_attention(
        F.pad(q, (0, MARKS), value=1.0),
        k,
        F.pad(v, (0, MARKS)),  # the fused kernel of CPUs wants all of one width
        attn_mask=_added(q, None, bias),
        scale=width**-0.5,
    )
    return y[..., :width]


def _added(q: Tensor, key_mask: Tensor | None, bias: Bias | None) -> Tensor | None:
    """Mask and bias as one: bool, or float in the type of q with -inf at what nobody may look at."""
    added = bias(q) if callable(bias) else bias
    if added is not None and added.dtype != torch.bool:
        added = added.to(q.dtype)
    return limited(added, None if key_mask is None else key_mask[:, None, None])


def limited(bias: Tensor | None, allowed: Tensor | None) -> Tensor | None:
    """A bias, float or bool, of which only what is `allowed` (bool, broadcastable) counts; None is no limit."""
    if allowed is None or bias is None:
        return allowed if bias is None else bias
    return bias & allowed if bias.dtype == torch.bool else bias.masked_fill(~allowed, -math.inf)


def precise(x: Tensor) -> Tensor:
    """In float32, or float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def scores(
    q: Tensor, k: Tensor, added: Tensor | None, chunk: int, scale: float | None = None
) -> Iterator[Tensor]:
    """What `attend` takes the softmax of, `chunk` queries at a time: (B, H, up to chunk, N).

    q, k: (B, H, N, D). added: bool where a query may look at a key, or float. scale: None is 1 / sqrt(D).
    """
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    for first in range(0, q.shape[2], chunk):
        part = q[:, :, first : first + chunk] @ k.mT
        if added is not None:
            rows = added if added.shape[-2] == 1 else added[..., first : first + chunk, :]
            part = part.masked_fill(~rows, -math.inf) if rows.dtype == torch.bool else part + rows
        yield part


class ShortAttention(torch.autograd.Function):
    """Attention in bf16 on a CPU with the probabilities kept for the backward pass.

    The fused kernel recomputes them there in slices too small for the matrix units. Forward and backward on one
    AVX512-bf16 core: (8, 12, 50, 64) takes 17 ms fused and 2.8 ms here, (8, 16, 197, 32) 68 and 32 ms. Scores and
    softmax are float32, as in the fused kernel; gradients go through two roundings to bf16 more.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().mT  # (B, H, N, N)
        p = scores.softmax(-1).to(v.dtype)
        ctx.save_for_backward(q, k, v, p)
        return p @ v

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, p = ctx.saved_tensors
        scale, grad = q.shape[-1] ** -0.5, grad.contiguous()
        grad_scores = torch.ops.aten._softmax_backward_data(grad @ v.mT, p, -1, p.dtype)
        return (grad_scores @ k) * scale, (grad_scores.mT @ q) * scale, p.mT @ grad


def drop_path(x: Tensor, rate: float, noise: Tensor) -> Tensor:
    """Stochastic depth (Huang et al. 2016): whole samples of a residual branch x (B, ...) are kept where noise >= rate.

    noise: uniform in [0, 1), (B, 1, ...). What is kept is divided by 1 - rate.
    """
    return x * (noise >= rate).to(x.dtype) / (1 - rate)


def drop_path_rates(highest: float, depth: int) -> list[float]:
    """Rate of each of `depth` blocks, growing linearly from 0 to `highest`."""
    return [highest * i / max(1, depth - 1) for i in range(depth)]


class Attention(nn.Module):
    """Multi-head self-attention; the three projections are one matrix (query, key, value rows in that order)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(
        self,
        x: Tensor,
        last: int | None = None,
        key_mask: Tensor | None = None,
        bias: Bias | None = None,
    ) -> Tensor:
        """(B, N, C) -> (B, N, C), or (B, last, C): the output of the last `last` tokens alone.

        key_mask: bool (B, N), false for tokens that nobody may look at (padding). bias: see `Bias`.
        """
        if last is None:
            q, k, v = self._heads(self.qkv(x), 3)
        else:
            width = x.shape[-1]
            (q,) = self._heads(linear(x[:, -last:], self.qkv.weight[:width], self.qkv.bias[:width]), 1)
            k, v = self._heads(linear(x, self.qkv.weight[width:], self.qkv.bias[width:]), 2)
        y = attend(q, k, v, key_mask, bias)  # (B, H, N, C / H)
        return self.proj(y.transpose(1, 2).flatten(2))

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, N, parts * C) -> `parts` tensors (B, H, N, C / H)."""
        batch, n, _ = projected.shape
        return projected.view(batch, n, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def probabilities(
        self,
        x: Tensor,
        last: int | None = None,
        key_mask: Tensor | None = None,
        bias: Bias | None = None,
        chunk: int = 64,
    ) -> Iterator[Tensor]:
        """Softmax of the scores that `forward` makes of the same arguments, `chunk` queries at a time: (B, H, up to
        chunk, N) in float32 or better.
        """
        q, k, _ = self._heads(self.qkv(x), 3)
        q, k = precise(q), precise(k)
        q = q if last is None else q[:, :, -last:]
        for part in scores(q, k, _added(q, key_mask, bias), chunk):
            yield part.softmax(-1)


class Mlp(nn.Module):
    """Linear, exact GELU, linear; in half precision, or if `lean`, the backward pass computes GELU again
    (`ops.linear`).
    """

    def __init__(self, width: int, hidden: int, lean: bool = False) -> None:
        super().__init__()
        self.lean = lean
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return after_gelu(self.fc1(x), self.fc2, self.lean)


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (Touvron et al. 2021)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); both branches drop with the same rate, independently."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, round(width * mlp_ratio))
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.rate = drop_path

    def forward(self, x: Tensor, last: int | None = None, key_mask: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C), or (B, last, C) when only the last `last` tokens are wanted further on."""

        def attended(rows: Tensor | None) -> Tensor:
            mask = None if key_mask is None else _rows(key_mask, rows)
            return self.ls1(self.attn(self.norm1(_rows(x, rows)), last, mask))

        rate = self.rate if self.training else 0.0
        y = residual(x if last is None else x[:, -last:], attended, rate)
        return residual(y, lambda rows: self.ls2(self.mlp(self.norm2(_rows(y, rows)))), rate)


def residual(x: Tensor, branch: Callable[[Tensor | None], Tensor], rate: float, parts: bool = True) -> Tensor:
    """x (B, ...) + branch(None), with stochastic depth at `rate`; branch(rows) is that of some samples (rows,) alone.

    What is dropped on a CPU is not even computed, unless `parts` says that the branch works on whole batches alone. A
    GPU would have to wait for the host to learn what to leave out.
    """
    if rate == 0:
        return x + branch(None)
    noise = torch.rand(x.shape[0], device=x.device)
    if parts and x.is_cpu and not torch.compiler.is_compiling():
        kept = (noise >= rate).nonzero().flatten()
        if len(kept) == len(x):
            return x.add(branch(None), alpha=1 / (1 - rate))
        if len(kept):
            return x.index_add(0, kept, branch(kept).to(x.dtype), alpha=1 / (1 - rate))
    return x + drop_path(branch(None), rate, noise.view(-1, *[1] * (x.ndim - 1)))


def _rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """The samples `rows` of x (B, ...), or all of them."""
    return x if rows is None else x[rows]
