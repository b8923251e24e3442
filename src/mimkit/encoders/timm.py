"""Any backbone of timm (Wightman 2019) as an encoder that gives features: it cannot hide cells.

timm's own `forward_intermediates` does the work; the last feature map of each stride becomes a level. Layers for
learning rates and for partial fine-tuning are those of timm's `group_matcher`, as its own optimisers use it.
"""

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import timm as library
from timm.models import group_parameters
from torch import Tensor, nn

from mimkit.encoders.base import AttentionSite, Encoder, Features, Level
from mimkit.errors import UserError, nearest
from mimkit.masks import Mask

log = logging.getLogger(__name__)

HEAD = "mimkit_head"  # a name that no group of timm's claims, as those of heads are
RAW = {"Hiera", "HieraDet"}  # networks whose features timm refuses to norm


def build(
    name: str,
    channels: int = 3,
    size: Sequence[int] | None = None,
    pretrained: bool = False,
    drop_path: float = 0.0,
    checkpointing: bool = False,
) -> "TimmEncoder":
    """timm's model `name` for images of `channels`; `size` (h, w) sets the grid of models that fix one.

    pretrained: timm's published weights, downloaded. drop_path, checkpointing: where the model has them, else a
    warning. Raises UserError for unknown names and models without features.
    """
    bare = name.partition(".")[0]
    if not library.is_model(bare):
        raise UserError(f"timm has no model {name!r}.{nearest(bare, library.list_models())}")
    options: dict[str, Any] = {"in_chans": channels, "num_classes": 0, "pretrained": pretrained}
    wishes: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    if size is not None:
        wishes["img_size"] = tuple(size)
    try:
        model = _create(name, options, wishes)
    except RuntimeError as error:  # unknown tag, no published weights
        raise UserError(f"timm cannot build {name!r}: {error}") from error
    if checkpointing:
        _checkpoint(model, name)
    return TimmEncoder(model, channels)


def _create(name: str, options: dict[str, Any], wishes: dict[str, Any]) -> Any:
    """The model with the `wishes` that its family knows: convolutional networks take any size and no such argument."""
    try:
        return library.create_model(name, **options, **wishes)
    except TypeError as error:
        refused = next((wish for wish in wishes if f"'{wish}'" in str(error)), None)
        if refused is None:
            raise
        if refused == "drop_path_rate":
            log.warning("timm's %s has no drop path; encoder.drop_path has no effect.", name)
        return _create(name, options, {wish: value for wish, value in wishes.items() if wish != refused})


def _checkpoint(model: Any, name: str) -> None:
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):  # no such method; one that refuses
        log.warning("timm's %s has no activation checkpointing; encoder.checkpointing has no effect.", name)


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
        # CaiT adds them at the end, and cannot return them with inner layers
        tells = "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
        self.prefix_tokens = int(getattr(model, "num_prefix_tokens", 0)) if tells else 0
        self.normed = type(model).__name__ not in RAW
        heads = model.pretrained_cfg.get("classifier") or ()
        self.heads = tuple(f"model.{name}" for name in ([heads] if isinstance(heads, str) else heads))
        first = model.pretrained_cfg.get("first_conv")
        self.stem = f"model.{first}.weight" if isinstance(first, str) else None

    @property
    def grid(self) -> tuple[int, ...] | None:
        """(h, w) of the position table, None where the model has none of that kind."""
        table = getattr(self.model, "pos_embed", None)
        grid = getattr(getattr(self.model, "patch_embed", None), "grid_size", None)
        return tuple(grid) if isinstance(table, Tensor) and table.ndim == 3 and grid else None

    def forward(
        self,
        images: Tensor,
        mask: Mask | None = None,
        mask_token: Tensor | None = None,
        sizes: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Features:
        """Features of images (B, C, H, W): the last map of each stride, normed where timm norms it.

        layers: of timm's own count (stages, or blocks of a ViT), normed too; `analysis.layers.by_blocks` gives blocks.
        """
        self.check(images, mask, mask_token)
        if sizes is not None:
            raise UserError("timm's models see padding; give them images of one size.")
        wanted = sorted({*self.picked, *(layer - 1 for layer in layers)})
        extra = {"return_prefix_tokens": True} if self.prefix_tokens else {}
        try:
            maps = self.model.forward_intermediates(
                images, indices=wanted, norm=self.normed, intermediates_only=True, **extra
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
        """Layer of a parameter in timm's own order: 0 the stem, the blocks one by one, `deepest` what no group holds.

        A last norm belongs to the last block there. Raises UserError for models that state no order.
        """
        return self._depths.get(name.removeprefix("model."), self.deepest)

    @property
    def deepest(self) -> int:
        """The layer of timm's own head."""
        return self._depths[HEAD]

    @cached_property
    def _depths(self) -> Mapping[str, int]:
        """Parameter -> layer, and HEAD -> that of a head."""
        matcher = getattr(self.model, "group_matcher", None)
        if matcher is None:
            raise UserError(
                f"timm's {type(self.model).__name__} states no order of its layers, which layer-wise learning rates "
                "and partial fine-tuning need; use optimiser.layer_decay=null and leave task.blocks out."
            )
        named: Any = _WithHead(self.model)
        return group_parameters(named, matcher(coarse=False), reverse=True)

    def attentions(self) -> Iterator[AttentionSite]:
        return attention_sites(self.model)


class _WithHead:
    """The parameters of a model and one more, that of a head, as timm's grouping reads them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def named_parameters(self) -> Iterator[tuple[str, object]]:
        yield from self.model.named_parameters()
        yield HEAD, None


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
