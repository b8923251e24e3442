"""What recipe weights belong to: that beside them where mimkit wrote it, else what shapes and configuration say.

A foreign file says little. Width, depth, patch and channels are shapes; heads, mean and deviation come from a
config.json beside it or are those of the published files.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mimkit.data.normalise import IMAGENET_MEAN, IMAGENET_STD
from mimkit.encoders import Encoder
from mimkit.encoders.vit import VARIANTS, custom
from mimkit.errors import DataError
from mimkit.methods.base import Method
from mimkit.ops.positions import sincos
from mimkit.recipes import build, load
from mimkit.recipes.schema import Recipe
from mimkit.tasks import Task
from mimkit.zoo import mcmae_shapes
from mimkit.zoo.likeness import depth_of, looks_like, remedy, size_of
from mimkit.zoo.mcmae_shapes import is_hybrid
from mimkit.zoo.weights import Weights

log = logging.getLogger(__name__)
Say = Callable[..., None]  # a level of the log

USUAL_DECODER, DECODER_HEADS, HEAD_WIDTH = (512, 8), 16, 64  # width and depth; of the published files
BASES = {False: ("mae_base", "finetune_vit_base"), True: ("mcmae_base", "finetune_mcmae_base")}
PROBE_HEAD = "head.1.weight"
LAST = ("head.weight", PROBE_HEAD)  # (classes, C)
DATA = ("size", "channels", "mean", "std")  # what of a recipe's data belongs to the model


def recipe_of(
    text: str,
    weights: Weights,
    tensors: Mapping[str, Tensor],
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> Recipe:
    """The recipe of the model that `weights`, by our names `tensors`, belong to: their own, or what the shapes say.

    What has to be guessed is warned of, unless `quiet`.
    """
    say = log.debug if quiet else log.warning
    if weights.recipe:
        settings = [
            says(f"{part}.{key}", value)
            for part, section in weights.recipe.items()
            for key, value in section.items()
            if (key in DATA if part == "data" else key != "init")
        ]
        classifies = bool(weights.recipe.get("task"))
    else:
        settings, classifies = _shapes(text, weights, tensors, say), is_classifier(tensors)
    name = str(weights.recipe["encoder"]["name"]) if weights.recipe else "mcmae" if is_hybrid(tensors) else ""
    return load.resolve(base_of(name, classifies), [*settings, *overrides])


def base_of(name: str, classifies: bool = False) -> str:
    """The packaged recipe that says what weights of the encoder `name` do not: of pre-training, or of a classifier."""
    return BASES[name.startswith("mcmae")][classifies]


def model_of(recipe: Recipe, weights: Weights, tensors: Mapping[str, Tensor]) -> Encoder | Method | Task:
    """The module that these weights fill: method with a decoder, task with a head, else an encoder alone."""
    if any(name.startswith("decoder.") for name in tensors):
        return build.method(recipe)
    if recipe.task is None:
        return build.encoder(recipe)
    last = next(name for name in LAST if name in tensors)
    count = tensors[last].shape[0]
    return build.task(recipe, weights.classes or [str(i) for i in range(count)])


def is_classifier(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there is a head, and a norm or a token that says what it reads."""
    return any(name in tensors for name in LAST) and (
        "fc_norm.weight" in tensors or "encoder.cls_token" in tensors
    )


def _shapes(text: str, weights: Weights, tensors: Mapping[str, Tensor], say: Say) -> list[str]:
    """What the shapes of a foreign file say about the recipe, as overrides."""
    if is_hybrid(tensors):
        return _hybrid(text, weights, tensors, say)
    size = size_of(tensors)
    if size is None:
        raise DataError(
            f"{text} looks like {looks_like(weights.tensors)}, and holds no whole encoder that mimkit could build. "
            f"{remedy(weights.tensors)}."
        )
    kernel = tensors["encoder.patch_embed.proj.weight"]
    channels, height, width = kernel.shape[1:]
    rows, columns = weights.grid or _square(tensors) or (224 // height, 224 // width)
    settings = [
        says("encoder.name", _named(weights, tensors, *size, say)),
        says("encoder.patch", [height, width]),
        says("encoder.positions", _positions(tensors, (rows, columns))),
        says("encoder.class_token", "encoder.cls_token" in tensors),
        says("data.size", [rows * height, columns * width]),
        says("data.channels", channels),
        *statistics(text, channels, weights.mean, weights.std, say),
    ]
    if "encoder.blocks.0.ls1.gamma" in tensors:
        settings.append(says("encoder.layer_scale", 1.0))  # where it starts matters to nobody: it is loaded
    return [*settings, *_around(weights, tensors, say)]


def _hybrid(text: str, weights: Weights, tensors: Mapping[str, Tensor], say: Say) -> list[str]:
    """`_shapes` of an encoder of MCMAE."""
    found = mcmae_shapes.describe(tensors, weights.heads, weights.grid)
    if not found.told:
        say("%s does not say how many attention heads it has: taken as 64 wide.", weights.label)
    channels = tensors["encoder.patch_embed1.proj.weight"].shape[1]
    table = found.encoder.get("table") or tuple(side // 16 for side in found.size)
    return [
        *(says(f"encoder.{key}", value) for key, value in found.encoder.items()),
        says("encoder.positions", _positions(tensors, (table[0], table[1]))),
        says("data.size", found.size),
        says("data.channels", channels),
        *statistics(text, channels, weights.mean, weights.std, say),
        *_around(weights, tensors, say),
    ]


def _around(weights: Weights, tensors: Mapping[str, Tensor], say: Say) -> list[str]:
    """What the shapes say about a decoder and a head."""
    settings = _decoder(weights, tensors, say) if "decoder.embed.weight" in tensors else []
    if "fusion.norm.weight" in tensors:
        settings.append(says("method.multi_scale", "fusion.down.0.weight" in tensors))
    if is_classifier(tensors):
        settings += [
            says("task.pooling", "mean" if "fc_norm.weight" in tensors else weights.pooling or "cls"),
            says("task.head", "probe" if PROBE_HEAD in tensors else "linear"),
        ]
    return settings


def _decoder(weights: Weights, tensors: Mapping[str, Tensor], say: Say) -> list[str]:
    width, depth = tensors["decoder.embed.weight"].shape[0], depth_of(tensors, "decoder")
    if weights.decoder_heads is None and (width, depth) != USUAL_DECODER:
        say("%s does not say how many heads its decoder has: taken as %d.", weights.label, DECODER_HEADS)
    settings = [
        says("method.decoder.width", width),
        says("method.decoder.depth", depth),
        says("method.decoder.heads", weights.decoder_heads or DECODER_HEADS),
    ]
    if weights.norm_pix is not None:
        settings.append(says("method.norm_pix", weights.norm_pix))
    return settings


def _named(weights: Weights, tensors: Mapping[str, Tensor], width: int, depth: int, say: Say) -> str:
    """The encoder's name; where nothing says how many heads it has, those of the variant of this size, or 64 wide."""
    usual = next((row.heads for row in VARIANTS.values() if (row.width, row.depth) == (width, depth)), None)
    inner = tensors.get("encoder.blocks.0.mlp.fc1.weight")
    heads = weights.heads or usual or max(1, width // HEAD_WIDTH)
    if weights.heads is None and usual is None:
        say(
            "%s does not say how many attention heads it has: taken as %d, %d wide.",
            weights.label,
            heads,
            HEAD_WIDTH,
        )
    return custom(width, depth, heads, None if inner is None else inner.shape[0])


def _positions(tensors: Mapping[str, Tensor], grid: tuple[int, int]) -> str:
    """Whether a file's table is the fixed one, which is kept fixed, or was learned."""
    table = tensors.get("encoder.pos_embed")
    prefix = "encoder.cls_token" in tensors
    if table is None or table.shape[1] != grid[0] * grid[1] + prefix or table.shape[2] % 4:
        return "learned"
    fixed = sincos(table.shape[2], grid, prefix).to(table.dtype)
    return "sincos" if torch.allclose(table, fixed, atol=1e-4) else "learned"


def _square(tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """The grid of a position table that nothing describes: published ones are square."""
    rows = tensors["encoder.pos_embed"].shape[1] if "encoder.pos_embed" in tensors else 0
    for count in (rows - ("encoder.cls_token" in tensors), rows):
        for side in range(1, count + 1):
            if side * side == count:
                return (side, side)
    return None


def statistics(
    text: str,
    channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    say: Say = log.warning,
) -> list[str]:
    """How images are normalised: as the weights say, else as ImageNet's are."""
    if mean is None or std is None or not len(mean) == len(std) == channels:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if channels != 3:
            mean, std = [sum(mean) / 3] * channels, [sum(std) / 3] * channels
            say(
                "%s does not say how its %s normalised: taken as ImageNet's average; "
                "set data.mean and data.std if you know better.",
                text,
                "one channel is" if channels == 1 else f"{channels} channels were",
            )
    return [says("data.mean", list(mean)), says("data.std", list(std))]


def says(key: str, value: object) -> str:
    """An override; JSON is YAML."""
    return f"{key}={json.dumps(value)}"
