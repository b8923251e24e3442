"""The models that `mimkit analyze` looks into, each with the sample of images as it wants them: its size, its
normalisation, the same images in the same order for all.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mimkit.analysis.cost import parameters
from mimkit.data.batch import Batch
from mimkit.data.normalise import denormalise
from mimkit.data.sources import Source
from mimkit.encoders import Encoder
from mimkit.errors import DataError, UserError
from mimkit.recipes import load
from mimkit.recipes.schema import Recipe
from mimkit.verbs.describe import says, statistics
from mimkit.verbs.models import Model, open_model
from mimkit.verbs.running import Runner, on_device
from mimkit.zoo import folders

log = logging.getLogger(__name__)

KEPT = 2**30  # bytes of decoded images that are kept between analyses; more are decoded again
HF = "hf:"


@dataclass(frozen=True)
class Subject:
    """A model to look into. module: what runs; opened: None for a model of transformers that mimkit does not build."""

    label: str
    module: nn.Module
    recipe: Recipe
    about: str
    opened: Model | None = None

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.recipe.data.size
        return (height, width)

    @property
    def encoder(self) -> Encoder | None:
        return self.module if isinstance(self.module, Encoder) else None


@dataclass
class Sample:
    """The images at `ids` of `source` as `subject` wants them: prepared batches, numbered 0.. in the order of `ids`.

    It can be read again and again; `skipped` names what could not be decoded.
    """

    subject: Subject
    source: Source
    ids: Sequence[int]
    kept: list[Batch] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runner = Runner(self.subject.recipe)
        on_device(self.subject.module, self.runner)
        channels = self.subject.recipe.data.channels or 3
        self.small = len(self.ids) * channels * int(np.prod(self.subject.size)) <= KEPT

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._raw():
            if len(batch.ids):
                yield self.runner.prepare(batch)

    def _raw(self) -> Iterator[Batch]:
        if self.kept:
            yield from self.kept
            return
        rank = {id: place for place, id in enumerate(self.ids)}
        read = []
        self.skipped.clear()
        for batch in self.runner.batches(self.source, self.ids):
            self.skipped += [skip.name for skip in batch.skipped]
            numbered = replace(
                batch, ids=torch.tensor([rank[id] for id in batch.ids.tolist()], dtype=torch.long)
            )
            read.append(numbered)
            yield numbered
            if not self.small:
                read.clear()
        self.kept = read

    def few(self, count: int) -> tuple[Batch, np.ndarray, list[str]]:
        """The first `count` images: prepared, as (B, H, W, 3) in 0..1, and their names. Raises DataError for none."""
        got: list[Batch] = []
        for batch in self:
            got.append(batch)
            if sum(len(one.ids) for one in got) >= count:
                break
        if not got:
            raise self.runner.nothing_read(len(self.ids), self.source.name)
        ids = torch.cat([one.ids for one in got])[:count]
        images = torch.cat([one.images for one in got])[:count]
        part = self.subject.recipe.data
        assert part.mean is not None and part.std is not None
        pixels = denormalise(images, part.mean, part.std).permute(0, 2, 3, 1).cpu().numpy()
        names = [Path(self.source.key(self.ids[int(i)])).name for i in ids.tolist()]
        return replace(got[0], images=images, ids=ids, targets=None), pixels, names


def open_subjects(models: Sequence[str | Path], overrides: Sequence[str]) -> list[Subject]:
    """All of `models`, under labels that differ. Raises UserError or DataError as `open_model` does."""
    if not models:
        raise UserError(
            "There is no model to analyse: name a run folder, a published file, timm:NAME, hf:FOLDER or random:NAME."
        )
    subjects: list[Subject] = []
    for model in models:
        found = _open(str(model), overrides)
        taken = [subject.label for subject in subjects]
        label, number = found.label, 2
        while label in taken:
            label, number = f"{found.label} ({number})", number + 1
        subjects.append(replace(found, label=label))
    return subjects


def _open(text: str, overrides: Sequence[str]) -> Subject:
    try:
        opened = open_model(text, overrides)
    except DataError as error:
        if not text.startswith(HF):
            raise
        return _of_transformers(text, overrides, error)
    channels = opened.recipe.data.channels
    if channels is None or opened.recipe.data.mean is None:
        settings = [
            *overrides,
            says("data.channels", channels or 3),
            *statistics(text, channels or 3, None, None),
        ]
        opened = open_model(text, settings)
    return Subject(_label(text), opened.encoder, opened.recipe, _about(opened), opened)


def _label(text: str) -> str:
    """A short name: of a run or a file its own, else as it was given."""
    path = Path(text).expanduser()
    if path.exists():
        return path.resolve().stem if path.is_file() else path.resolve().name
    return text if not text.startswith(HF) else f"{HF}{Path(text.removeprefix(HF)).name}"


def _about(opened: Model) -> str:
    recipe, step = opened.recipe, opened.step
    what = f"encoder {recipe.encoder.name}, {parameters(opened.encoder) / 1e6:.1f} M parameters"
    source = opened.label if step is None else f"the run {Path(opened.label).name}, step {step}"
    if opened.report is not None and opened.report.fresh and not opened.report.loaded:
        source = "random weights"
    trained = "" if step is None else f"; trained by {'a task' if recipe.task else recipe.pretraining.name}"
    return f"{what}, from {source}{trained}{_normalised(recipe)}"


def _normalised(recipe: Recipe) -> str:
    mean, std = ([f"{value:.3g}" for value in part or ()] for part in (recipe.data.mean, recipe.data.std))
    height, width = recipe.data.size
    return f"; images {height} × {width}, mean {', '.join(mean)}, deviation {', '.join(std)}"


def _of_transformers(text: str, overrides: Sequence[str], why: DataError) -> Subject:
    """A model that transformers builds and mimkit does not. Raises `why` where transformers cannot either."""
    rest = text.removeprefix(HF)
    folder = Path(rest).expanduser()
    folder = folder if folder.is_dir() else folders.fetch(rest)
    try:
        from transformers import AutoModel
    except ImportError:
        raise UserError(
            f"{text} is a model that transformers builds: pip install 'mimkit[hf]' to look into it."
        ) from why
    try:
        module: Any = AutoModel.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise why from error
    module.name_or_path = _label(text)
    config, images = module.config, _preprocessor(folder)
    side = images.get("crop_size") or images.get("size") or getattr(config, "image_size", 224)
    recipe = load.resolve(
        "mae_base",
        [
            says("data.size", _pair(side)),
            says("encoder.patch", 1),  # any size: the model knows its own patch
            says("data.channels", getattr(config, "num_channels", 3)),
            *statistics(text, 3, images.get("image_mean"), images.get("image_std")),
            *overrides,
        ],
    )
    about = (
        f"transformers' {config.model_type}, {parameters(module) / 1e6:.1f} M parameters{_normalised(recipe)}"
    )
    return Subject(_label(text), module.eval(), recipe, about)


def _preprocessor(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _pair(side: Any) -> list[int]:
    """A size as transformers writes it: a number, a pair, or a dict of height and width or of the shortest edge."""
    if isinstance(side, dict):
        return [int(side.get(axis) or side["shortest_edge"]) for axis in ("height", "width")]
    height, width = (side, side) if isinstance(side, int) else side
    return [int(height), int(width)]


def left_out(sample: Sample, name: str, error: Exception) -> str:
    """The note, which is logged too, that the analysis `name` of a model could not be made."""
    note = f"{sample.subject.label}: {name} {'were' if name.endswith('s') else 'was'} left out. {error}"
    log.warning("%s", note)
    return note
