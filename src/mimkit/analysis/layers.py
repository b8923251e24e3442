"""What comes out of every block of any model: the residual stream, before a final norm.

CKA, spectra, token norms and dense features all look at block outputs (Xie et al. 2023, figure 6; a final norm
would hide tokens of large norm). Blocks are found by where they live: the innermost numbered entries of lists named
`blocks`, `layers`, `layer`, `stages` or `stage...`, which holds for our encoders, timm's models and those of
transformers. Probes and embeddings count layers by the same rule (`by_blocks`).
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mimkit.analysis.probe import frozen
from mimkit.analysis.subjects import (
    bare,
    check_weights,
    device_of,
    forward_of,
    is_timm,
    is_transformers,
    name_of,
    prefix_tokens,
)
from mimkit.encoders.base import Encoder, Features
from mimkit.errors import UserError, counted
from mimkit.masks import Mask

log = logging.getLogger(__name__)

NUMBERED = re.compile(r"(^|.*\.)(blocks|layers?|stages?)_?\d*\.\d+$")


def block_names(model: nn.Module) -> list[str]:
    """Names of the blocks, in the order of the model's definition.

    Raises UserError where there is nothing that looks like a block, or where tokens lie in no raster between blocks.
    """
    if any(hasattr(part, "unroll") for part in model.modules()):  # Hiera
        raise UserError(
            f"{name_of(model)} keeps its tokens in an order of its own between blocks, which the analysis cannot lay "
            "on a grid."
        )
    numbered = [name for name, part in model.named_modules() if NUMBERED.match(name) and _computes(part)]
    inner = [name for name in numbered if not any(other.startswith(f"{name}.") for other in numbered)]
    if not inner:
        raise UserError(
            f"{name_of(model)} has no blocks that the analysis could find (entries of lists named blocks, layers or "
            "stages)."
        )
    return inner


def _computes(module: nn.Module) -> bool:
    return not isinstance(module, nn.ModuleList) and any(True for _ in module.parameters())


def by_blocks(encoder: Encoder) -> Encoder:
    """The encoder with blocks as its layers, as everywhere in the analysis, each as it leaves its block: networks of
    timm count stages and norm what they give, MCMAE counts its last stage.

    One in which no blocks are found stays as it is, which is said.
    """
    try:
        names = block_names(encoder)
    except UserError as error:
        log.info("%s Its %d stages are the layers.", error, encoder.depth)
        return encoder
    foreign = is_timm(getattr(encoder, "model", encoder))
    return Layered(encoder) if foreign or encoder.depth != len(names) else encoder


@contextmanager
def tapping(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within: a dict that each forward pass fills with the outputs of the modules `names`, as they come."""
    modules = dict(model.named_modules())
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if not isinstance(first, Tensor):
                raise UserError(
                    f"The block {name} gives a {type(first).__name__}; the analysis reads only tensors."
                )
            outputs[name] = first.detach()

        return modules[name].register_forward_hook(hook)

    handles = [keep(name) for name in names]
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code may not call the hooks
            yield outputs
    finally:
        for handle in handles:
            handle.remove()


def tokens_of(output: Tensor, model: nn.Module, images: Tensor) -> Tensor:
    """A block's output as (B, T, C): prefix tokens dropped, maps flattened whichever way their channels lie."""
    if output.ndim == 3:
        prefix = 0 if _is_map_model(model) else prefix_tokens(model)
        return output[:, prefix:]
    return map_of(output, model, images).flatten(1, 2)


def map_of(output: Tensor, model: nn.Module, images: Tensor) -> Tensor:
    """A block's output as (B, h, w, C), prefix tokens dropped."""
    if output.ndim == 3:
        tokens = tokens_of(output, model, images)
        return tokens.unflatten(1, grid_of(tokens.shape[1], model, images))
    if output.ndim == 5:  # the unit layout, with the whole map as one unit: (B, 1, h, w, C)
        return output.flatten(0, 1)
    return output if _channels_last(output, model, images) else output.movedim(1, -1)


def _is_map_model(model: nn.Module) -> bool:
    return getattr(getattr(model, "model", model), "output_fmt", None) == "NHWC"


def _channels_last(output: Tensor, model: nn.Module, images: Tensor) -> bool:
    """Whether (B, a, b, c) is (B, h, w, C): by which two axes have one stride, by the model's habit where both do."""
    height, width = images.shape[2:]
    fits = [
        any((-(-height // s), -(-width // s)) == pair for s in range(1, 129))
        for pair in (tuple(output.shape[1:3]), tuple(output.shape[2:]))
    ]
    if fits[0] != fits[1]:
        return fits[0]
    return _is_map_model(model) or (isinstance(model, Encoder) and not hasattr(model, "model"))


def grid_of(tokens: int, model: Any, images: Tensor) -> tuple[int, int]:
    """The grid of a sequence of `tokens` patches: that of the model's stride."""
    height, width = images.shape[2:]
    for stride in (*_strides(model), *((s, s) for s in range(1, 129))):
        grid = (-(-height // stride[0]), -(-width // stride[1]))
        if grid[0] * grid[1] == tokens:
            return grid
    raise UserError(
        f"{counted(tokens, 'token')} cannot be a grid over images of {height} x {width} pixels; the analysis does not "
        "know this layout."
    )


def _strides(model: Any) -> list[tuple[int, int]]:
    if isinstance(model, Encoder):
        return [(level.stride[0], level.stride[1]) for level in model.levels]
    patch = (
        model.config.patch_size
        if is_transformers(model)
        else getattr(getattr(model, "patch_embed", None), "patch_size", None)
    )
    if patch is None:
        return []
    return [(patch, patch) if isinstance(patch, int) else (patch[0], patch[1])]


def dense_features(
    model: nn.Module, images: Tensor, layers: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Feature maps (B, h, w, C) of the block outputs `layers` (None: all), and "final": behind the final norm.

    images: normalised (B, C, H, W), a few. What users call DINO-style PCA pictures is `pca_rgb` of "final".
    """
    model = bare(model)
    check_weights(model, name_of(model))
    names = block_names(model) if layers is None else list(layers)
    with frozen(model), tapping(model, names) as outputs:
        x = images.to(device_of(model))
        final = final_map(model, forward_of(model), x)
    made = {name: map_of(outputs[name], model, images).cpu() for name in names}
    return made if final is None else made | {"final": final.cpu()}


class Layered(Encoder):
    """Any model as an encoder to read from, such as one of transformers: its blocks are the layers, and behind the
    last one stands its final norm.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.names = model, block_names(model)
        self.depth = len(self.names)

    def forward(
        self,
        images: Tensor,
        mask: Mask | None = None,
        mask_token: Tensor | None = None,
        sizes: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Features:
        if mask is not None or sizes is not None:
            raise UserError("Layers are read of whole images of one size.")
        wanted = {layer: self.names[layer - 1] for layer in {*layers, self.depth}}
        with tapping(self.model, list(wanted.values())) as outputs:
            last = self._last(images)
        inner = {layer: self._features(outputs[name], images) for layer, name in wanted.items()}
        each = {layer: inner[layer] for layer in layers}
        return replace(inner[self.depth] if last is None else last, layers=each)

    def _last(self, images: Tensor) -> Features | None:
        """Behind the final norm."""
        if isinstance(self.model, Encoder):
            return self.model(images)
        final = final_map(self.model, forward_of(self.model), images)
        return None if final is None else Features((final,))

    def _features(self, output: Tensor, images: Tensor) -> Features:
        """A block's output, with the tokens in front where they are told apart behind the final norm, too."""
        count = prefix_tokens(self.model) if isinstance(self.model, Encoder) and output.ndim == 3 else 0
        return Features((map_of(output, self.model, images),), prefix=output[:, :count] if count else None)


def final_map(model: Any, run: Any, x: Tensor) -> Tensor | None:
    """(B, h, w, C) behind the final norm; None for a model that hands out only scores."""
    if isinstance(model, Encoder):
        return model(x).levels[-1]
    if is_transformers(model):
        output = run(x)
        hidden = getattr(output, "last_hidden_state", None)
        return None if hidden is None else map_of(hidden, model, x)
    if hasattr(model, "forward_features"):
        output = model.forward_features(x)
        return map_of(output, model, x) if isinstance(output, Tensor) and output.ndim in (3, 4) else None
    run(x)
    return None
