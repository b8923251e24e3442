"""Any backbone of timm (Wightman 2019) as an encoder that gives features: it cannot hide cells.

timm's own `forward_intermediates` does the work; the last feature map of each stride becomes a level.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import timm as library
from torch import Tensor

from mimkit.encoders.base import AttentionSite, Encoder, Features, Level
from mimkit.errors import UserError, nearest
from mimkit.masks import Mask


def build(
    name: str, channels: int = 3, size: Sequence[int] | None = None, pretrained: bool = False
) -> "TimmEncoder":
    """timm's model `name` for images of `channels`; `size` (h, w) sets the grid of models that fix one.

    pretrained: timm's published weights, downloaded. Raises UserError for unknown names and models without features.
    """
    bare = name.partition(".")[0]
    if not library.is_model(bare):
        raise UserError(f"timm has no model {name!r}.{nearest(bare, library.list_models())}")
    options: dict[str, Any] = {"in_chans": channels, "num_classes": 0, "pretrained": pretrained}
    try:
        return TimmEncoder(_create(name, size, options), channels)
    except RuntimeError as error:  # unknown tag, no published weights
        raise UserError(f"timm cannot build {name!r}: {error}") from error


def _create(name: str, size: Sequence[int] | None, options: dict[str, Any]) -> Any:
    if size is not None:
        try:
            return library.create_model(name, img_size=tuple(size), **options)
        except TypeError:  # convolutional networks take any size and no such argument
            pass
    return library.create_model(name, **options)


class TimmEncoder(Encoder):
    """A timm model behind the Encoder contract; features only."""

    def __init__(self, model: Any, channels: int) -> None:
        super().__init__()
        if not hasattr(model, "forward_intermediates"):
            raise UserError(
                f"timm's {type(model).__name__} gives no intermediate features; choose another model."
            )
        self.model: Any = model
        self.channels = channels
        stages = [(info["reduction"], info["num_chs"]) for info in model.feature_info]
        self.depth = len(stages)
        self.picked = [
            i for i, (stride, _) in enumerate(stages) if stride not in [s for s, _ in stages[i + 1 :]]
        ]
        self.levels = tuple(Level((stages[i][0],) * 2, stages[i][1]) for i in self.picked)
        self.unit = self.levels[-1].stride
        self.prefix_tokens = int(getattr(model, "num_prefix_tokens", 0))

    def forward(
        self,
        images: Tensor,
        mask: Mask | None = None,
        mask_token: Tensor | None = None,
        sizes: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Features:
        """Features of images (B, C, H, W): the last map of each stride, normed where the model norms it."""
        self.check(images, mask, mask_token)
        if sizes is not None:
            raise UserError("timm's models see padding; give them images of one size.")
        wanted = sorted({*self.picked, *(layer - 1 for layer in layers)})
        extra = {"return_prefix_tokens": True} if self.prefix_tokens else {}
        try:
            maps = self.model.forward_intermediates(
                images, indices=wanted, norm=True, intermediates_only=True, **extra
            )
        except AssertionError as error:  # how timm's models refuse a size that they were not built for
            size = " x ".join(map(str, images.shape[2:]))
            raise UserError(
                f"timm's {type(self.model).__name__} does not take images of {size} pixels ({error}); "
                "build it with that size or give it images of its own."
            ) from error
        made = {}
        for stage, result in zip(wanted, maps, strict=True):
            x, prefix = result if self.prefix_tokens else (result, None)  # (B, C, h, w)
            made[stage] = Features((x.movedim(1, -1),), None, prefix)
        last = made[self.picked[-1]]
        each = {layer: made[layer - 1] for layer in layers}
        return Features(tuple(made[i].levels[0] for i in self.picked), None, last.prefix, each)

    def depth_of(self, name: str) -> int:
        """timm groups parameters by its own matcher; layer-wise rates are not offered for foreign models."""
        raise UserError(
            "Layer-wise learning rates are not defined for timm's models; leave optimiser.layer_decay out."
        )

    def attentions(self) -> Iterator[AttentionSite]:
        return attention_sites(self.model)


def attention_sites(model: Any) -> Iterator[AttentionSite]:
    """The self-attention modules of one of timm's models: global ones and those of (shifted) windows."""
    modules = dict(model.named_modules())
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    for name, module in modules.items():
        if not (hasattr(module, "num_heads") and (hasattr(module, "qkv") or hasattr(module, "q_proj"))):
            continue
        block = modules[name.rpartition(".")[0]]
        window, shift = _pair(getattr(block, "window_size", 0)), _pair(getattr(block, "shift_size", 0))
        stride = _pair(_reduction(model, name))
        if not all(window):
            yield AttentionSite(name, module, stride, prefix)
        else:
            yield AttentionSite(name, module, stride, 0, window, shift, rolled_first=True)


def _reduction(model: Any, name: str) -> int | tuple[int, int]:
    """Pixels per token where the module `name` stands: those of the stage around it."""
    around = [info["reduction"] for info in model.feature_info if name.startswith(str(info["module"]) + ".")]
    return around[0] if around else model.feature_info[-1]["reduction"]


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
