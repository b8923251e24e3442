"""What is looked into: an encoder of ours, a model of timm or of transformers; how it is run and where it attends.

Everything is learned from the model itself: the number of prefix tokens and the stride of each layer are never guessed
from the number of tokens, so class tokens, registers and rectangular images come out right.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mimkit.analysis.geometry import Geometry, whole, windowed
from mimkit.data.batch import Batch
from mimkit.encoders.base import AttentionSite, Encoder
from mimkit.errors import DataError, UserError

PREFIX = {  # tokens in front of the patches in transformers' models, by model_type; registers come on top
    "vit": 1,
    "deit": 2,
    "beit": 1,
    "data2vec-vision": 1,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "dinov3_vit": 1,
    "ijepa": 0,
}


def bare(model: nn.Module) -> nn.Module:
    """The model itself, where `torch.compile(model)` wrapped it."""
    return getattr(model, "_orig_mod", model)


def is_transformers(model: nn.Module) -> bool:
    """Whether it is a model of Hugging Face's transformers."""
    return hasattr(model, "config") and hasattr(getattr(model, "config", None), "model_type")


def is_timm(model: nn.Module) -> bool:
    """Whether it is one of timm's models itself."""
    return type(model).__module__.startswith("timm.")


def attention_sites(model: nn.Module) -> list[AttentionSite]:
    """The attention layers in order of computation; none for a convolutional network.

    Raises UserError for transformers' models whose prefix tokens are not known.
    """
    if isinstance(model, Encoder):
        return list(model.attentions())
    if is_timm(model):
        from mimkit.encoders.timm import attention_sites as of_timm

        return list(of_timm(model))
    return list(_of_transformers(model)) if is_transformers(model) else []


def _of_transformers(model: Any) -> Iterator[AttentionSite]:
    stride, prefix = _patch(model.config), prefix_tokens(model)
    named = {name: part for name, part in model.named_modules() if type(part).__name__.endswith("Attention")}
    for name, module in named.items():
        if not any(other.startswith(f"{name}.") for other in named):  # the innermost does the work
            yield AttentionSite(name, module, stride, prefix)


def _patch(config: Any) -> tuple[int, int]:
    patch = config.patch_size
    return (patch, patch) if isinstance(patch, int) else (patch[0], patch[1])


def prefix_tokens(model: nn.Module) -> int:
    """Class token and registers in front of the patches."""
    if not is_transformers(model):
        return int(getattr(model, "prefix_tokens", getattr(model, "num_prefix_tokens", 0)))
    config: Any = model.config
    if config.model_type not in PREFIX:
        raise UserError(
            f"The tokens of transformers' {config.model_type!r} are not known here; known are {', '.join(PREFIX)}. "
            "Convert the model (mimkit convert) or analyse timm's version of it."
        )
    return PREFIX[config.model_type] + int(getattr(config, "num_register_tokens", 0))


def forward_of(model: nn.Module) -> Callable[[Tensor], Any]:
    """How the model is run on normalised images (B, C, H, W)."""
    if not is_transformers(model):
        return model
    known = inspect.signature(model.forward).parameters
    extra = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in known else {}
    return lambda images: model(pixel_values=images, **extra)


def input_shape(model: Any) -> tuple[int, int, int]:
    """(channels, height, width) of images that the model certainly takes."""
    if is_transformers(model):
        size = model.config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(model.config.num_channels), int(height), int(width)
    foreign = getattr(model, "model", None) if isinstance(model, Encoder) else model
    if foreign is not None and is_timm(foreign):
        embed = getattr(foreign, "patch_embed", None)
        height, width = getattr(embed, "img_size", None) or foreign.default_cfg["input_size"][1:]
        stem = next(part for part in foreign.modules() if isinstance(part, nn.Conv2d))
        return stem.in_channels, int(height), int(width)
    return int(getattr(model, "channels", 3)), 224, 224


def geometry_of(site: AttentionSite, size: tuple[int, ...]) -> Geometry:
    """Where the tokens of `site` lie in images of `size` (h, w), which is padded to whole tokens."""
    stride = (site.stride[0], site.stride[1])
    grid = (-(-size[0] // stride[0]), -(-size[1] // stride[1]))
    if site.window is None:
        return whole(grid, stride)
    shift = site.shift or (0, 0)
    return windowed(grid, stride, (site.window[0], site.window[1]), (shift[0], shift[1]), site.rolled_first)


def name_of(model: nn.Module) -> str:
    """A name for tables when none is given."""
    inner = getattr(model, "model", model) if isinstance(model, Encoder) else model
    return str(getattr(inner, "name_or_path", "") or type(inner).__name__)


def check_weights(model: nn.Module, name: str) -> None:
    """Raises UserError where a weight is NaN or infinite: every number would be, too."""
    for key, value in [*model.named_parameters(), *model.named_buffers()]:
        # a sum shows what is not finite in one pass; only one that overflows is looked at again
        if value.is_floating_point() and not value.sum().isfinite() and not value.isfinite().all():
            raise UserError(
                f"The weights of {name} hold values that are no finite numbers (first in {key!r}); "
                "analyse an earlier checkpoint."
            )


class Feed:
    """The images of a loader, checked: float, of one size. `size` (h, w) and `ids` fill while it is read.

    batches: `Batch`, tensors (B, C, H, W), or tuples of them and something else. images: stop after so many.
    """

    def __init__(self, batches: Iterable[Any], images: int | None = None) -> None:
        self.batches, self.limit = batches, images
        self.size: tuple[int, ...] | None = None
        self.ids: list[int] = []

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            room = None if self.limit is None else self.limit - len(self.ids)
            if room is not None and room <= 0:
                return
            images = images_in(batch)[:room]
            self._check(images)
            given = batch.ids[:room].tolist() if isinstance(batch, Batch) else None
            start = len(self.ids)
            self.ids += given or list(range(start, start + len(images)))
            yield images

    def _check(self, images: Tensor) -> None:
        if not images.is_floating_point():
            raise UserError(
                f"The analyses need normalised images in floating point, and these are {images.dtype}; "
                "pass them through mimkit.data.normalise.prepare or your model's own transform."
            )
        size = tuple(images.shape[2:])
        if self.size not in (None, size):
            raise DataError(
                f"All images must have one size, and after images of {_words(self.size)} pixels came some of "
                f"{_words(size)}; resize and crop them to one size first."
            )
        self.size = size


def images_in(batch: Any) -> Tensor:
    """(B, C, H, W)."""
    found = batch.images if isinstance(batch, Batch) else batch
    if isinstance(found, list | tuple) and found:
        found = found[0]
    if not isinstance(found, Tensor) or found.ndim != 4:
        raise UserError(
            f"A loader must give batches, tensors (B, C, H, W) or tuples that begin with one; this one gave "
            f"{type(batch).__name__}."
        )
    return found


def _words(size: tuple[int, ...] | None) -> str:
    return " x ".join(map(str, size or ()))


def device_of(model: nn.Module) -> torch.device:
    """Where its first weight lies."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device
