"""Where weights come from: a run folder, a file, an exported or downloaded folder, timm, the transformers hub."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mimkit.errors import DataError, UserError, nearest
from mimkit.zoo import folders, network
from mimkit.zoo.folders import CONFIG, MODEL
from mimkit.zoo.mae import NORM_PIX
from mimkit.zoo.read import read_json, read_tensors
from mimkit.zoo.weights import Weights

__all__ = ["Weights", "open_source"]

log = logging.getLogger(__name__)

CHECKPOINTS, RECIPE, STATE, AVERAGE = "checkpoints", "recipe.yaml", "state.json", "ema.safetensors"


def open_source(source: str) -> Weights:
    """The weights that `source` names: a run folder, a file, an exported folder, `timm:NAME` or `hf:FOLDER`.

    `hf:` takes an id of the hub too, where a network reaches it. Raises UserError where there are none, DataError
    where they cannot be read.
    """
    kind, _, rest = source.partition(":")
    if kind == "timm" and rest:
        return _from_timm(rest)
    if kind == "hf" and rest:
        folder = Path(rest).expanduser()
        folder = folder if folder.is_dir() else folders.fetch(rest)
        return folders.open_folder(folder, f"hf:{Path(rest).name}")
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(
            f"There is nothing at {source}; give a run folder, a file of weights, timm:NAME or hf:FOLDER."
        )
    if path.is_file():
        return _from_file(path, path.name)
    if (path / CONFIG).is_file() and not (path / RECIPE).is_file():
        return folders.open_folder(path, path.name)
    return _from_run(path)


def _from_file(path: Path, label: str) -> Weights:
    if (path.parent / CONFIG).is_file() and folders.is_the_weights(path):
        return folders.open_folder(path.parent, label)
    tensors = read_tensors(path).tensors
    if recipe := _recipe_of(path):
        state = read_json(path.with_name(STATE)) if path.with_name(STATE).is_file() else {}
        extra = state.get("extra") or {}
        described = folders.from_recipe(recipe, tensors, extra.get("classes"))
        return Weights(tensors, label, **described | {"bits": extra.get("bits")})
    known = [value for start, value in NORM_PIX.items() if path.name.startswith(start)]
    return Weights(tensors, label, norm_pix=next(iter(known), None))


def _from_run(folder: Path) -> Weights:
    """The newest checkpoint of a run; a `step-N` folder is that checkpoint. With the moving average of the weights
    where it keeps one, as every verb that looks at a run has it.
    """
    if (folder / MODEL).is_file():
        return _averaged(_from_file(folder / MODEL, f"{folder.name}/{MODEL}"), folder)
    steps = [step for step in (folder / CHECKPOINTS).glob("step-*") if (step / MODEL).is_file()]
    numbered = [(int(step.name.removeprefix("step-")), step) for step in steps if step.name[5:].isdigit()]
    if not numbered:
        raise UserError(
            f"{folder} is no run folder with a checkpoint ({CHECKPOINTS}/step-N/{MODEL}); "
            "for a folder of the transformers hub write hf:FOLDER."
        )
    step, newest = max(numbered)
    if step == 0:
        log.warning("%s was saved before the first step: its weights are random.", newest)
    return _averaged(_from_file(newest / MODEL, f"{folder.name}/{CHECKPOINTS}/{newest.name}"), newest)


def _averaged(weights: Weights, checkpoint: Path) -> Weights:
    """`weights` with the trained ones replaced by their moving average, where the checkpoint holds it."""
    if not (checkpoint / AVERAGE).is_file():
        return weights
    tensors = {**weights.tensors, **read_tensors(checkpoint / AVERAGE).tensors}
    return replace(weights, tensors=tensors, label=f"{weights.label} (moving average)")


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


def _from_timm(name: str) -> Weights:
    """timm's published weights, downloaded by timm or taken from its cache."""
    import timm

    bare = name.partition(".")[0]
    if not timm.is_model(bare):
        raise UserError(f"timm has no model {name!r}.{nearest(bare, timm.list_models())}")
    reached = True
    try:
        with network.hub() as reached:
            model = timm.create_model(name, pretrained=True, num_classes=0)
    except (
        Exception
    ) as error:  # no network, no such weights, a broken cache: whatever the hub's client raises
        if not reached:
            remedy = (
                "download the file where there is a network and give its path, or use "
                f"random:timm:{bare} for random weights"
            )
            raise network.unreached(f"timm:{name}", remedy) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
        raise UserError(
            f"The weights of timm:{name} could not be fetched ({reason}); download the file where there is a network "
            "and give its path."
        ) from error
    patches, cfg = getattr(model, "patch_embed", None), getattr(model, "pretrained_cfg", {})
    size = getattr(patches, "img_size", None) or tuple(cfg.get("input_size", ()))[1:] or None
    return Weights(
        model.state_dict(),
        f"timm:{name}",
        getattr(patches, "grid_size", None),
        size=size,
        mean=cfg.get("mean"),
        std=cfg.get("std"),
        architecture=name,
    )
