"""Folders of weights with a config.json: what mimkit exports, timm's, and those of the transformers hub.

The configuration tells them apart, and says what shapes do not: heads, image size, mean and deviation. A folder of the
hub may be given by its id, where a network reaches it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mimkit.encoders.mcmae_forms import FORMS
from mimkit.encoders.mcmae_view import UNIT
from mimkit.errors import DataError, UserError
from mimkit.zoo import network
from mimkit.zoo.read import read_json, read_tensors
from mimkit.zoo.weights import Weights

CONFIG, MODEL = "config.json", "model.safetensors"
OWN_FORMAT, OWN_VERSION = "mimkit", 1
SECTIONS = ("encoder", "method", "task", "data")  # of a recipe, as far as they say what weights are
PROCESSOR = "preprocessor_config.json"
WEIGHT_FILES = (MODEL, "pytorch_model.bin")
POOLINGS = {"avg": "mean", "token": "cls"}  # timm's words -> ours
TIMM_KEYS = (  # key of timm's configuration, its type, and that in words
    ("architecture", str, 'timm\'s name of the network, such as "resnet50"'),
    ("pretrained_cfg", dict, "an object"),
    ("model_args", dict, "an object"),
)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
SAFE, PICKLED = "model*.safetensors*", "pytorch_model*.bin*"  # weights in a folder of the hub


def open_folder(folder: Path, label: str) -> Weights:
    """The weights in a folder, read by its config.json.

    Raises UserError where it holds none, DataError where they cannot be read or the configuration asks for something
    that no encoder here computes.
    """
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors.update(read_tensors(file).tensors)
    if config.get("format") == OWN_FORMAT:
        return _own(tensors, label, config)
    if "architecture" in config:
        return _timm(tensors, label, config, folder / CONFIG)
    return _hub(tensors, label, config, folder)


def fetch(identity: str) -> Path:
    """The folder of the hub's `identity` (`owner/name`, `owner/name@revision`), downloaded or from the cache.

    Raises UserError when it is no such id or cannot be fetched.
    """
    if not HUB_ID.fullmatch(identity):
        raise UserError(
            f"There is no folder {identity}; give a downloaded folder of the hub, or an id as owner/name."
        )
    from huggingface_hub import snapshot_download

    name, _, revision = identity.partition("@")
    reached = True
    try:
        with network.hub() as reached:
            for weights in (SAFE, PICKLED):  # many hold both; one is enough
                wanted = [CONFIG, PROCESSOR, weights]
                folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
                if any(folder.glob(weights)):
                    break
        return folder
    except Exception as error:  # no network, no such id, a full disk: whatever the hub's client raises
        if not reached:
            remedy = "download the folder where there is a network and give hf:FOLDER"
            raise network.unreached(f"hf:{identity}", remedy) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
        raise UserError(
            f"hf:{identity} could not be fetched ({reason}); download the folder where there is a network and give "
            "hf:FOLDER."
        ) from error


def is_the_weights(file: Path) -> bool:
    """Whether `file` is all that its folder holds of weights, so that a config.json there speaks of it."""
    try:
        return weight_files(file.parent) == [file]
    except UserError:
        return False


def weight_files(folder: Path) -> list[Path]:
    """The file of weights in a folder, or its shards. Raises UserError when there is none."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = read_json(index).get("weight_map", {})
            return [folder / Path(shard).name for shard in sorted(set(shards.values()))]
    if any(folder.glob("*.onnx")):
        raise UserError(
            f"{folder} holds an ONNX program, which onnxruntime runs and mimkit does not read; export the model with "
            "--to safetensors for mimkit."
        )
    raise UserError(
        f"{folder} holds neither {' nor '.join(WEIGHT_FILES)}; give a folder with weights: a run, what `mimkit export` "
        "wrote, or a downloaded folder of the hub."
    )


def _own(tensors: Mapping[str, Tensor], label: str, config: Mapping[str, Any]) -> Weights:
    if config.get("version") != OWN_VERSION:
        raise DataError(
            f"{label} was written in version {config.get('version')} of mimkit's format, this mimkit reads version "
            f"{OWN_VERSION}; export it again, or install the mimkit that wrote it."
        )
    recipe = {part: config[part] for part in SECTIONS if isinstance(config.get(part), dict)}
    return Weights(tensors, label, **from_recipe(recipe, tensors, config.get("classes")))


def from_recipe(
    recipe: Mapping[str, Any], tensors: Mapping[str, Tensor], classes: Any = None
) -> dict[str, Any]:
    """What the sections of a recipe of mimkit say of its tensors, and the classes of a head, as arguments of
    `Weights`.
    """
    encoder, method, data = (recipe.get(part) or {} for part in ("encoder", "method", "data"))
    size = _pair(data.get("size"))
    return {
        "grid": _grid(encoder, tensors, size),
        "norm_pix": method.get("norm_pix"),
        "decoder_heads": (method.get("decoder") or {}).get("heads"),
        "size": size,
        "mean": _numbers(data.get("mean")),
        "std": _numbers(data.get("std")),
        "classes": _names(classes),
        "bits": data.get("bits"),
        "recipe": {part: recipe.get(part) or {} for part in SECTIONS} if encoder.get("name") else {},
    }


def _grid(
    encoder: Mapping[str, Any], tensors: Mapping[str, Tensor], size: tuple[int, int] | None
) -> tuple[int, ...] | None:
    """The grid of the position table of an encoder for images of `size`."""
    name, patch = str(encoder.get("name")), _pair(encoder.get("patch"))
    if name.startswith("timm:"):
        return _grid_by_kernel(tensors.get("encoder.model.patch_embed.proj.weight"), size)
    if name.startswith("mcmae"):
        form = FORMS.get(encoder.get("form") or "")
        if table := _pair(encoder.get("table")) or (form and form.table):
            return table
        patch = UNIT
    if not (size and patch):
        return None
    return tuple(-(-side // cell) for side, cell in zip(size, patch, strict=True))


def _grid_by_kernel(kernel: Tensor | None, size: tuple[int, int] | None) -> tuple[int, ...] | None:
    """The grid of patches of one of timm's networks, by the kernel (C_out, C, h, w) that cuts them."""
    if size is None or kernel is None or kernel.ndim != 4:
        return None
    return tuple(side // cell for side, cell in zip(size, kernel.shape[2:], strict=True))


def _timm(tensors: Mapping[str, Tensor], label: str, config: Mapping[str, Any], file: Path) -> Weights:
    """A folder as timm pushes it to the hub and reads it from `local-dir:`. Raises DataError for what is no such
    configuration.
    """
    for key, kind, words in TIMM_KEYS:
        if not isinstance(config.get(key) or kind(), kind):
            raise DataError(
                f"{file} gives {key} as {config[key]!r}, and it must be {words}; correct the file, or copy it again."
            )
    cfg = config.get("pretrained_cfg") or config
    arguments = config.get("model_args") or {}
    size = _pair(arguments.get("img_size")) or _pair(list(cfg.get("input_size") or ())[1:])
    return Weights(
        tensors,
        label,
        _grid_by_kernel(tensors.get("patch_embed.proj.weight"), size),
        heads=arguments.get("num_heads"),
        size=size,
        mean=_numbers(cfg.get("mean")),
        std=_numbers(cfg.get("std")),
        architecture=config["architecture"] or None,
        arguments=arguments,
        config=file,
        classes=_names(config.get("label_names") or cfg.get("label_names")),
        pooling=POOLINGS.get(str(arguments.get("global_pool") or config.get("global_pool"))),
    )


def _hub(tensors: Mapping[str, Tensor], label: str, config: Mapping[str, Any], folder: Path) -> Weights:
    """A folder of transformers. Raises DataError for an activation that is not computed here: shapes would not tell."""
    if config.get("hidden_act", "gelu") != "gelu":
        raise DataError(
            f"{label} computes {config['hidden_act']!r} in its MLPs, the encoders here exact GELU; "
            "use weights that were trained with 'gelu'."
        )
    size, patch = _pair(config.get("image_size")), _pair(config.get("patch_size"))
    processor = read_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    return Weights(
        tensors,
        label,
        tuple(side // cell for side, cell in zip(size, patch, strict=True)) if size and patch else None,
        config.get("norm_pix_loss"),
        config.get("layer_norm_eps"),
        config.get("num_attention_heads"),
        config.get("decoder_num_attention_heads"),
        size,
        _numbers(processor.get("image_mean")),
        _numbers(processor.get("image_std")),
        classes=_labels(config.get("id2label") or {}),
        bits=_depth(processor),
    )


def _depth(processor: Mapping[str, Any]) -> int | None:
    """Bits of the images that an image processor of transformers brings to 0..1; 32 where it takes them as they are."""
    if not processor.get("do_rescale", True):
        return 32
    factor = processor.get("rescale_factor")
    return None if not factor else {255: 8, 65535: 16}.get(round(1 / factor))


def _pair(value: Any) -> tuple[int, int] | None:
    """(h, w) from a number, a pair or nothing."""
    if isinstance(value, int):
        return (value, value)
    return (value[0], value[1]) if isinstance(value, list | tuple) and len(value) == 2 else None


def _labels(named: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The classes of `id2label` by their numbers: files may list "10" before "2"."""
    numbers = sorted(named, key=int) if all(str(key).isdigit() for key in named) else list(named)
    return _names([named[key] for key in numbers])


def _names(value: Any) -> tuple[str, ...] | None:
    return tuple(map(str, value)) if isinstance(value, list | tuple) and value else None


def _numbers(value: Any) -> tuple[float, ...] | None:
    return tuple(float(x) for x in value) if isinstance(value, list | tuple) and value else None
