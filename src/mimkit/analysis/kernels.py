"""Depth-wise convolution kernels read as attention: how far, how broadly and how differently the channels look.

"Revealing the Dark Secrets of Masked Image Modeling" (Xie et al. 2023, appendix, figures 12 to 14) does this for
RepLKNet. The paper says only that each channel is normalised over its kernel; here a = |w| / sum |w|, and squares
or a softmax on request. There is one query, the kernel's centre; distances are in cells, times the stride of the
stage in pixels. Kernels that run side by side and add up (RepLKNet's large and small one) are merged first.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mimkit.analysis.frames import Frame, frame
from mimkit.analysis.measures import EPS
from mimkit.analysis.probe import frozen
from mimkit.analysis.subjects import bare, check_weights, device_of, forward_of, input_shape, name_of
from mimkit.errors import UserError

NORMS = ("abs", "square", "softmax")
Norm = tuple[Tensor, Tensor, float]  # a batch norm's weight, running variance and eps


@dataclass(frozen=True)
class LayerKernels:
    """One depth-wise layer of C channels. distance (px), entropy (nats): (C,). kl: mean over ordered channel pairs.

    kernel: (kh, kw). stride: pixels per cell. weights: (C, kh, kw), normalised. uniform_...: of a kernel that looks
    alike everywhere.
    """

    name: str
    distance: np.ndarray
    entropy: np.ndarray
    kl: float
    uniform_distance: float
    uniform_entropy: float
    kernel: tuple[int, int]
    stride: tuple[float, float]
    weights: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class KernelStatistics:
    """All depth-wise layers of a model, in order of computation."""

    model: str
    layers: tuple[LayerKernels, ...]

    def to_frame(self) -> Frame:
        """Columns model, layer (1..), head (the channel; None is the layer), metric, value; and the layer's name."""
        return frame(self._rows(), ("model", "layer", "head", "metric", "value", "name"))

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        for number, layer in enumerate(self.layers, start=1):
            for metric, values in (("kernel_distance", layer.distance), ("kernel_entropy", layer.entropy)):
                for channel, value in [*enumerate(values.tolist()), (None, float(values.mean()))]:
                    yield self.model, number, channel, metric, value, layer.name
            yield self.model, number, None, "kernel_kl", layer.kl, layer.name
            yield self.model, number, None, "uniform_kernel_distance", layer.uniform_distance, layer.name
            yield self.model, number, None, "uniform_kernel_entropy", layer.uniform_entropy, layer.name


def kernel_statistics(model: nn.Module, name: str | None = None, norm: str = "abs") -> KernelStatistics:
    """Every depth-wise convolution of `model` read as attention; it is run once, on a blank image, for the strides.

    Raises UserError for models without depth-wise kernels or with NaN weights.
    """
    model = bare(model)
    name = name or name_of(model)
    convs = {key: part for key, part in model.named_modules() if is_depthwise(part)}
    if not convs:
        raise UserError(
            f"{name} has no depth-wise kernels to read; attention_statistics looks at attention, and CKA and "
            "spectra apply to every model."
        )
    check_weights(model, name)
    strides = _strides(model, convs)
    merged = _merged(model, convs)
    return KernelStatistics(
        name,
        tuple(_layer(key, weight, strides[key], norm) for key, weight in merged.items() if key in strides),
    )


def _layer(name: str, weight: Tensor, stride: tuple[float, float], norm: str) -> LayerKernels:
    a = kernel_attention(weight.double().cpu(), norm)
    even = torch.full_like(a[:1], 1 / a[0].numel())
    return LayerKernels(
        name,
        kernel_distance(a, stride).numpy(),
        kernel_entropy(a).numpy(),
        kernel_kl(a),
        float(kernel_distance(even, stride)),
        math.log(a[0].numel()),
        (a.shape[1], a.shape[2]),
        stride,
        a.numpy(),
    )


def is_depthwise(module: nn.Module) -> bool:
    """Whether it is a convolution of each channel alone with more than one weight a channel."""
    if not isinstance(module, nn.Conv2d):
        return False
    return (
        1 < module.in_channels == module.out_channels == module.groups and math.prod(module.kernel_size) > 1
    )


def kernel_attention(weight: Tensor, norm: str = "abs") -> Tensor:
    """(C, kh, kw): each channel normalised to sum 1; norm: "abs", "square" or "softmax"."""
    if norm not in NORMS:
        raise UserError(f"Kernels cannot be normalised by {norm!r}; known are {', '.join(NORMS)}.")
    flat = weight.flatten(1)
    if norm == "softmax":
        return flat.softmax(1).view_as(weight)
    mass = flat.abs() if norm == "abs" else flat.square()
    return (mass / mass.sum(1, keepdim=True).clamp_min(1e-30)).view_as(weight)


def kernel_distance(a: Tensor, stride: tuple[float, float] = (1, 1)) -> Tensor:
    """(C,): mean distance from the centre, ((k - 1) / 2), of kernels (C, kh, kw) that are normalised; in units of
    `stride`.
    """
    offsets = [
        (torch.arange(n, dtype=a.dtype, device=a.device) - (n - 1) / 2) * s
        for n, s in zip(a.shape[1:], stride, strict=True)
    ]
    away = torch.hypot(offsets[0][:, None].expand(a.shape[1:]), offsets[1][None].expand(a.shape[1:]))
    return (a * away).sum((1, 2))


def kernel_entropy(a: Tensor) -> Tensor:
    """(C,) nats."""
    return torch.special.entr(a).sum((1, 2))


def kernel_kl(a: Tensor, eps: float = EPS) -> float:
    """Mean KL divergence over the C (C - 1) ordered pairs of channels, in O(C k^2); NaN for a single channel."""
    flat = a.flatten(1)
    log_a = flat.clamp_min(eps).log()
    channels = len(flat)
    if channels < 2:
        return math.nan
    total = channels * (flat * log_a).sum() - (flat.sum(0) * log_a.sum(0)).sum()
    return float(total) / (channels * (channels - 1))


def merge_kernels(
    large: Tensor, small: Tensor, large_norm: Norm | None = None, small_norm: Norm | None = None
) -> Tensor:
    """The one kernel (C, 1, kh, kw) that does what a large and a small one side by side do (RepLKNet, Ding et al.
    2022).

    Each is scaled by its batch norm (weight, running variance, eps), and the small one is padded to the centre.
    """
    large, small = _normed(large, large_norm), _normed(small, small_norm)
    room = [a - b for a, b in zip(large.shape[-2:], small.shape[-2:], strict=True)]
    if min(room) < 0 or any(n % 2 for n in room):
        raise UserError(
            f"A kernel of {tuple(small.shape[-2:])} has no place at the centre of one of {tuple(large.shape[-2:])}."
        )
    return large + nn.functional.pad(small, (room[1] // 2, room[1] // 2, room[0] // 2, room[0] // 2))


def _normed(kernel: Tensor, norm: Norm | None) -> Tensor:
    if norm is None:
        return kernel
    weight, variance, eps = norm
    return kernel * (weight / (variance + eps).sqrt()).view(-1, 1, 1, 1)


def _merged(model: nn.Module, convs: dict[str, nn.Conv2d]) -> dict[str, Tensor]:
    """name -> (C, kh, kw). RepLKNet's blocks hold `lkb_origin` and `small_conv`, each a convolution and its norm."""
    made: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    for name, conv in convs.items():
        weight = conv.weight.detach()
        around, _, branch = name.rpartition(".")[0].rpartition(".")
        if branch == "small_conv" and f"{around}.lkb_origin" in modules:
            continue
        if branch == "lkb_origin" and f"{around}.small_conv" in modules:
            small: Any = modules[f"{around}.small_conv"]
            own: Any = modules[f"{around}.lkb_origin"]
            weight = merge_kernels(weight, small.conv.weight.detach(), _norm_of(own), _norm_of(small))
        made[name] = weight[:, 0]
    return made


def _norm_of(branch: Any) -> Norm | None:
    norm = getattr(branch, "bn", None)
    return None if norm is None else (norm.weight.detach(), norm.running_var, norm.eps)


def _strides(model: nn.Module, convs: dict[str, nn.Conv2d]) -> dict[str, tuple[float, float]]:
    """Pixels per cell of what each convolution reads, times its dilation; in order of computation."""
    channels, height, width = input_shape(model)
    ear = _Ear({conv.weight.data_ptr(): name for name, conv in convs.items()})
    with frozen(model), torch.compiler.set_stance("force_eager"), ear:
        first = next(model.parameters())
        blank = torch.zeros(1, channels, height, width, device=device_of(model), dtype=first.dtype)
        forward_of(model)(blank)
    made = {}
    for name, (h, w) in ear.sizes.items():
        down, right = convs[name].dilation
        made[name] = (height / h * int(down), width / w * int(right))
    return made


class _Ear(TorchFunctionMode):
    """Overhears convolutions, whether a module makes them or a function is given its kernel (`ops.masked_conv`).

    names: by the address of the kernel. sizes: (h, w) of the map that each reads.
    """

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.sizes: dict[str, tuple[int, int]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.conv2d and (name := self.names.get(args[1].data_ptr())):
            self.sizes[name] = (args[0].shape[-2], args[0].shape[-1])
        return func(*args, **(kwargs or {}))
