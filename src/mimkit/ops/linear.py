"""Linear layers that a CPU computes in float32 by oneDNN, as it does those in bf16.

torch multiplies float32 matrices by the BLAS it was built with, MKL. The kernels of oneDNN, which ships in the same
library, need a quarter less time for the tall and narrow products of a transformer (tokens by channels): a float32 step
of MAE-B takes 0.85 of the time on two cores (`benchmarks/NOTES.md`). torch itself takes this way when it compiles a
model for inference; here it serves training too. Sums are ordered differently, so results agree to rounding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]  # documented, but not in its list of names
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

SMALL = 2**25  # multiplications of a product; below, calling oneDNN costs more than it gains

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`: the same parameters, names and start."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of x (..., in), weight (out, in) and bias (out,)."""
    if _by_onednn(x, weight):
        return _OneDNN.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Large float32 products of plain tensors on a CPU.

    Compilers, exporters and whoever counts operations get the plain product, which they know.
    """
    if not (_ONEDNN and x.is_cpu and x.dtype == weight.dtype == torch.float32 and type(x) is Tensor):
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or is_tracing():
        return False
    return x.dim() > 1 and x.numel() * len(weight) >= SMALL and not is_in_torch_dispatch_mode()


class _OneDNN(torch.autograd.Function):
    """x (..., in), weight (out, in), bias (out,) or None -> (..., out)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows, tokens = grad.flatten(0, -2), x.flatten(0, -2)  # (n, out), (n, in)
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = linear(rows, weight.t()).view_as(x)
        if ctx.needs_input_grad[1]:
            few = len(rows) <= min(weight.shape)  # MKL is the faster one where many rows are summed up
            to_weight = linear(rows.t(), tokens.t()) if few else rows.t() @ tokens
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum(0)
        return to_x, to_weight, to_bias
