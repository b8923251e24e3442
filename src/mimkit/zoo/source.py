"""Where initial weights come from: a run folder, a file, timm, or a folder in the layout of the transformers hub."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from mimkit.errors import DataError, UserError, nearest
from mimkit.zoo.mae import NORM_PIX
from mimkit.zoo.read import read_json, read_tensors

CHECKPOINTS, MODEL, RECIPE = "checkpoints", "model.safetensors", "recipe.yaml"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Weights:
    """tensors: by the names of their format. label: how reports call them. grid: (h, w) of the position table, None
    when nothing says. norm_pix: whether a decoder among them predicts normalised pixels, None when nothing says.
    eps: of the layer norms, where a configuration names one.
    """

    tensors: Mapping[str, Tensor]
    label: str
    grid: tuple[int, ...] | None = None
    norm_pix: bool | None = None
    eps: float | None = None


def open_source(source: str) -> Weights:
    """The weights that `source` names: a run folder, a file, `timm:NAME` or `hf:FOLDER`.

    Raises UserError where there are none, DataError where they cannot be read.
    """
    kind, _, rest = source.partition(":")
    if kind == "timm" and rest:
        return _from_timm(rest)
    if kind == "hf" and rest:
        return _from_hub_folder(Path(rest).expanduser())
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(
            f"There is nothing at {source}; give a run folder, a file of weights, timm:NAME or hf:FOLDER."
        )
    if path.is_dir():
        return _from_run(path)
    return _from_file(path, path.name)


def _from_file(path: Path, label: str) -> Weights:
    tensors = read_tensors(path).tensors
    recipe = _recipe_of(path)
    known = [value for start, value in NORM_PIX.items() if path.name.startswith(start)]
    norm_pix = recipe.get("method", {}).get("norm_pix") if recipe else next(iter(known), None)
    return Weights(tensors, label, _recipe_grid(recipe), norm_pix)


def _from_run(folder: Path) -> Weights:
    """The newest checkpoint of a run; a `step-N` folder is that checkpoint."""
    if (folder / MODEL).is_file():
        return _from_file(folder / MODEL, f"{folder.name}/{MODEL}")
    steps = [step for step in (folder / CHECKPOINTS).glob("step-*") if (step / MODEL).is_file()]
    numbered = [(int(step.name.removeprefix("step-")), step) for step in steps if step.name[5:].isdigit()]
    if not numbered:
        raise UserError(
            f"{folder} is no run folder with a checkpoint ({CHECKPOINTS}/step-N/{MODEL}); "
            "for a folder of the transformers hub write hf:FOLDER."
        )
    _, newest = max(numbered)
    return _from_file(newest / MODEL, f"{folder.name}/{CHECKPOINTS}/{newest.name}")


def _recipe_of(path: Path) -> dict[str, Any]:
    """The resolved recipe of the run that `path` (run/checkpoints/step-N/model.safetensors) belongs to, or {}."""
    recipe = path.resolve().parents[min(2, len(path.resolve().parents) - 1)] / RECIPE
    if path.name != MODEL or not recipe.is_file():
        return {}
    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(
            f"{recipe} cannot be read as YAML; restore it or give the weights as a file."
        ) from error
    return content if isinstance(content, dict) else {}


def _recipe_grid(recipe: dict[str, Any]) -> tuple[int, ...] | None:
    size, patch = recipe.get("data", {}).get("size"), recipe.get("encoder", {}).get("patch")
    if not size or not patch:
        return None
    sides = [size, size] if isinstance(size, int) else size
    cells = [patch, patch] if isinstance(patch, int) else patch
    return tuple(-(-side // cell) for side, cell in zip(sides, cells, strict=True))


def _from_hub_folder(folder: Path) -> Weights:
    """A folder with model.safetensors or pytorch_model.bin (or their shards) and a config.json."""
    tensors: dict[str, Tensor] = {}
    for file in _hub_files(folder):
        tensors.update(read_tensors(file).tensors)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    size, patch = config.get("image_size"), config.get("patch_size")
    grid = (size // patch,) * 2 if isinstance(size, int) and isinstance(patch, int) else None
    return Weights(
        tensors, f"hf:{folder.name}", grid, config.get("norm_pix_loss"), config.get("layer_norm_eps")
    )


def _hub_files(folder: Path) -> list[Path]:
    for name in HUB_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = read_json(index).get("weight_map", {})
            return [folder / shard for shard in sorted(set(shards.values()))]
    raise UserError(f"{folder} holds neither {' nor '.join(HUB_FILES)}; give a downloaded folder of the hub.")


def _from_timm(name: str) -> Weights:
    """timm's published weights, downloaded by timm or taken from its cache."""
    import timm

    bare = name.partition(".")[0]
    if not timm.is_model(bare):
        raise UserError(f"timm has no model {name!r}.{nearest(bare, timm.list_models())}")
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except (
        Exception
    ) as error:  # no network, no such weights, a broken cache: whatever the hub's client raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
        raise UserError(
            f"The weights of timm:{name} could not be fetched ({reason}); download the file where there is a network "
            "and give its path."
        ) from error
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    return Weights(model.state_dict(), f"timm:{name}", grid)
