"""Linear layers that keep little for the backward pass, and are faster in float32 on a CPU.

Under autocast torch casts a float32 weight and autograd keeps the cast until the backward pass: 2 bytes for each weight
of the model, a fifth of what a small batch needs. `linear` keeps the weight alone, which lies in memory anyway, and
casts it again when its turn comes; the bits are the same.

torch multiplies float32 matrices by the BLAS it was built with, MKL. The kernels of oneDNN, which ships in the same
library and does bf16 anyway, need a tenth to a sixth less time for the products of a transformer (tokens by channels).
torch takes this way when it compiles a model for inference; here it serves training too. Sums are ordered differently,
so results agree to rounding.

Of what a transformer block keeps for its backward pass in half precision, the hidden layer of the MLP is 16 of 36 bytes
a token and channel: once before and once behind GELU. `after_gelu` keeps the former alone and computes GELU again.
What all three are worth: `benchmarks/NOTES.md`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]  # documented, but not in its list of names
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

HALF = {torch.bfloat16, torch.float16}
SMALL = 2**25  # multiplications of a product; below, calling oneDNN costs more than it gains

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

Gradients = tuple[Tensor | None, ...]


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`: the same parameters, names and start."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of x (..., in), weight (out, in) and bias (out,).

    Compilers, exporters and transforms of functions (`torch.func`) get the plain product, which they know.
    """
    if _is_looked_into():
        return F.linear(x, weight, bias)
    dtype = _autocast_dtype(x.device)
    if dtype is None and _suits_onednn(x, weight):
        # where nothing is kept (in a backward pass, for one) the way through autograd only costs time
        return _Linear.apply(x, weight, bias) if torch.is_grad_enabled() else _onednn(x, weight, bias)
    # without gradients nothing is kept, and autocast casts a weight once for all its uses
    if dtype is not None and weight.dtype == torch.float32 and torch.is_grad_enabled():
        return _Linear.apply(x.to(dtype), weight, bias)
    return F.linear(x, weight, bias)


def after_gelu(hidden: Tensor, layer: nn.Linear, lean: bool = False) -> Tensor:
    """layer(gelu(hidden)): (..., in) -> (..., out); in half precision `hidden` alone is kept for the backward pass.

    A layer that somebody has replaced or watches is called as it is. In float32 a hundredth of the time counts for more
    than a tenth of the memory, unless `lean`.
    """
    watched = type(layer) is not Linear or layer._forward_hooks or layer._forward_pre_hooks
    if watched or not torch.is_grad_enabled() or _is_looked_into():
        return layer(F.gelu(hidden))
    dtype = _autocast_dtype(hidden.device) or layer.weight.dtype
    if dtype not in HALF and not lean:
        return layer(F.gelu(hidden))
    return _AfterGelu.apply(hidden, layer.weight, layer.bias, dtype)


def _is_looked_into() -> bool:
    transformed = torch._C._are_functorch_transforms_active()  # which has no public name
    return torch.compiler.is_compiling() or is_tracing() or transformed


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Large float32 products of plain tensors on a CPU. Whoever counts operations gets the product that is known."""
    if not (_ONEDNN and x.is_cpu and x.dtype == weight.dtype == torch.float32 and type(x) is Tensor):
        return False
    return x.dim() > 1 and x.numel() * len(weight) >= SMALL and not is_in_torch_dispatch_mode()


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast makes of float32 in matrix products on `device`; None where it is off."""
    kind = device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


class _Linear(torch.autograd.Function):
    """x (..., in), weight (out, in), bias (out,) or None -> (..., out) in the type of x; float32 by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if x.dtype == torch.float32:
            return _onednn(x, weight, bias)
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        to_weight, to_bias = _of_parameters(ctx.needs_input_grad[1:], grad, x, weight)
        return _of_input(grad, weight) if ctx.needs_input_grad[0] else None, to_weight, to_bias


class _AfterGelu(torch.autograd.Function):
    """hidden (..., in), weight (out, in), bias (out,) or None, the type to compute in -> (..., out) in that type."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        bias = None if bias is None else bias.to(dtype)
        return linear(F.gelu(hidden).to(dtype), weight.to(dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        hidden, weight = ctx.saved_tensors
        # one step after the other, so that few of these large tensors are there at a time
        x = F.gelu(hidden).to(grad.dtype)
        to_weight, to_bias = _of_parameters(ctx.needs_input_grad[1:], grad, x, weight)
        del x
        to_hidden = None
        if ctx.needs_input_grad[0]:
            to_hidden = _of_input(grad, weight).to(hidden.dtype)
            in_place = {} if torch.is_grad_enabled() else {"grad_input": to_hidden}
            to_hidden = torch.ops.aten.gelu_backward(to_hidden, hidden, **in_place)
        return to_hidden, to_weight, to_bias, None


def _of_parameters(
    needed: Sequence[bool], grad: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of weight and bias, from x (..., in) and the output's, grad (..., out) in the type of x."""
    rows, tokens = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])  # (n, out), (n, in)
    to_weight = to_bias = None
    if needed[0]:
        # oneDNN is the faster one where a layer narrows, MKL elsewhere
        narrow = rows.dtype == torch.float32 and rows.shape[1] < tokens.shape[1]
        to_weight = (linear(rows.t(), tokens.t()) if narrow else rows.t() @ tokens).to(weight.dtype)
    if needed[1]:
        to_bias = rows.sum(0).to(weight.dtype)
    return to_weight, to_bias


def _of_input(grad: Tensor, weight: Tensor) -> Tensor:
    """Gradient (..., in) of the input, from the output's, grad (..., out)."""
    rows = grad.reshape(-1, grad.shape[-1])  # as it is, torch might copy the weight for each row of a batch
    return linear(rows, weight.to(grad.dtype).t()).view(*grad.shape[:-1], weight.shape[1])
