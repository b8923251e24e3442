"""Classification heads on timm's networks: where timm keeps them, and whether it answers as a classifier here does.

A classifier here is a linear layer on pooled features. Many of timm's networks end so, under a name that each family
chose for itself; others put a norm or a convolution between. No table of families decides which is which: timm's own
model is asked, once on the way out and once on the way in, and only equal logits count.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mimkit.zoo.weights import Weights

POOLINGS: Mapping[str, tuple[Mapping[str, Any], ...]] = {  # ours -> arguments with which timm may pool alike
    "mean": ({}, {"global_pool": "avg"}, {"global_pool": "avg", "fc_norm": False}),
    "cls": ({}, {"global_pool": "token"}),
}
CLOSE = 1e-4  # of logits: another order of summation in float32


class Split(NamedTuple):
    """A state dict of timm's in two: the encoder by timm's names, and its linear head, weight (classes, C) and bias."""

    encoder: dict[str, Tensor]
    weight: Tensor
    bias: Tensor


def split_head(tensors: Mapping[str, Tensor], heads: tuple[str, ...]) -> Split | None:
    """The linear head of a network whose heads, by module, are `heads`; None where it has none, several or another."""
    if len(heads) != 1:
        return None
    names = f"{heads[0]}.weight", f"{heads[0]}.bias"
    if any(name not in tensors for name in names) or tensors[names[0]].ndim != 2:
        return None
    rest = {name: tensor for name, tensor in tensors.items() if name not in names}
    return Split(rest, tensors[names[0]], tensors[names[1]])


def join_head(encoder: Mapping[str, Tensor], head: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    """A state dict of timm's: the encoder by timm's names, and `head` (weight, bias) as `module`."""
    return {**encoder, **{f"{module}.{name}": tensor for name, tensor in head.items()}}


def their_logits(
    architecture: str,
    arguments: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    classes: int,
    images: Tensor,
) -> Tensor | None:
    """What timm's model with these weights answers to images (B, C, H, W): (B, classes), None where it takes no such
    weights, arguments or images.
    """
    import timm

    try:
        model = timm.create_model(architecture, **{**arguments, "num_classes": classes}).eval()
        model.load_state_dict(dict(tensors))
        with torch.no_grad():
            return model(images)
    except (RuntimeError, TypeError, AssertionError, ValueError):  # how its families refuse
        return None


def alike(ours: Tensor, theirs: Tensor | None) -> bool:
    """Whether these are the same logits but for rounding."""
    if theirs is None or ours.shape != theirs.shape:
        return False
    return bool((ours - theirs).abs().max() <= CLOSE * max(1.0, float(ours.abs().max())))


def example(channels: int, size: tuple[int, ...]) -> Tensor:
    """Two images of noise, always the same, without a draw from the global generator."""
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))


def as_probe(weights: Weights) -> Weights:
    """A plain ViT of timm's whose head reads the mean of normed tokens, as the linear probe that it is here: with the
    batch norm of one, which changes nothing (statistics 0 and 1). Others stay as they are.
    """
    split = split_head(weights.tensors, ("head",))
    if weights.pooling != "mean" or split is None or "fc_norm.weight" in weights.tensors:
        return weights
    width = split.weight.shape[1]
    probe = {
        "head.0.running_mean": torch.zeros(width),
        "head.0.running_var": torch.ones(width),
        "head.0.num_batches_tracked": torch.tensor(0),
        "head.1.weight": split.weight,
        "head.1.bias": split.bias,
    }
    return replace(weights, tensors={**split.encoder, **probe})
