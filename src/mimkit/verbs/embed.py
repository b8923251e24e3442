"""`mimkit embed`: features of images in a file, for search, clustering or another model.

The images are cut into blocks of a fixed size. A block is computed and kept beside the output, as a whole; what was
stopped goes on with the blocks that are missing, and several processes (torchrun) share them out. The blocks decide
what goes through the model together, so the features are the same to the bit however often it was stopped and however
many processes there were.
"""

import json
import logging
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mimkit.analysis.layers import by_blocks
from mimkit.data.batch import Batch, Skip
from mimkit.data.sources import Source, open_source
from mimkit.engine import processes
from mimkit.engine.processes import Processes
from mimkit.errors import UserError, counted
from mimkit.tasks.classify import Classifier
from mimkit.verbs.features_out import WRITERS, Part, check_format
from mimkit.verbs.files import replacing
from mimkit.verbs.models import Model, open_model
from mimkit.verbs.running import Progress, Runner, on_device

log = logging.getLogger(__name__)

BLOCK = 512  # images of a block
FEATURES, IDS = "features", "ids"
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Embedding:
    """Where the features are: images x shape, float32. what: which features, in words. skipped: unreadable images."""

    out: Path
    files: tuple[Path, ...]
    images: int
    shape: tuple[int, ...]
    what: str
    skipped: tuple[str, ...]

    def lines(self) -> list[str]:
        """For a terminal."""
        shape = " x ".join(map(str, self.shape))
        made = [
            f"{counted(self.images, 'image')}, {shape} values each ({self.what}): {', '.join(map(str, self.files))}"
        ]
        if self.skipped:
            made.append(f"{len(self.skipped)} could not be read and have no row, such as {self.skipped[0]}")
        return made


def embed(
    model: str | Path,
    path: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    pooling: str | None = None,
    dense: bool = False,
    layer: int | None = None,
    progress: Progress = None,
) -> Embedding:
    """See `mimkit.api.embed`."""
    target = Path(out)
    check_format(target)
    if dense and pooling:
        raise UserError("Dense features are not pooled; leave --pooling or --dense out.")
    opened = open_model(model, overrides)
    what, take = _features(opened, pooling, dense, layer)
    runner = Runner(opened.recipe)
    with processes.start(runner.device) as here:
        images = here.from_first(lambda: open_source(path))
        settings = _settings(opened, images, runner, what)
        parts = target.with_name(f"{target.name}.parts")
        here.from_first(lambda: _claim(parts, settings))
        on_device(opened.task or opened.encoder, runner)
        here.together(lambda: _compute(parts, images, runner, take, here, progress))
        return here.from_first(lambda: _finish(parts, target, images, what, runner))


def _features(
    opened: Model, pooling: str | None, dense: bool, layer: int | None
) -> tuple[str, Callable[[Batch], Tensor]]:
    """Which features, in words, and what makes them (B, ...) of a prepared batch.

    Raises UserError for a layer or a pooling that the encoder does not have.
    """
    encoder, task = opened.encoder, opened.task
    if layer is not None:
        encoder = by_blocks(encoder)
    if layer is not None and not 1 <= layer <= encoder.depth:
        raise UserError(f"--layer {layer}: the encoder has the layers 1 to {encoder.depth}.")
    if pooling is None and not dense and layer is None and isinstance(task, Classifier):
        return "what the head reads", task.features
    layers = () if layer is None or layer == encoder.depth else (layer,)
    how = pooling or "mean"
    of = "" if not layers else f", layer {layer}"

    def take(batch: Batch) -> Tensor:
        features = encoder(batch.images, sizes=batch.sizes, layers=layers)
        chosen = features.layers[layers[0]] if layers else features
        return chosen.levels[-1] if dense else chosen.pooled(how)

    words = {"mean": "mean of the patches", "cls": "class token"}
    if not dense and how not in words:
        raise UserError(f"--pooling {how}: known are {' and '.join(words)}.")
    return ("all positions" if dense else words[how]) + of, take


def _settings(opened: Model, images: Source, runner: Runner, what: str) -> dict[str, Any]:
    """What the features depend on: blocks of other settings are of no use."""
    part = opened.recipe.data
    return {
        "weights": _checksum(opened.task or opened.encoder),
        "images": images.digest(),
        "features": what,
        "size": list(part.size),
        "mean": list(part.mean or ()),
        "std": list(part.std or ()),
        "precision": runner.precision,
        "block": [BLOCK, runner.chunk],
    }


def _checksum(module: nn.Module) -> int:
    value = 0
    for name, tensor in module.state_dict().items():
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data, value)
    return value


def _claim(parts: Path, settings: dict[str, Any]) -> None:
    """Make the folder of blocks, or take it up; blocks of other settings are thrown away."""
    noted = parts / SETTINGS
    known = json.loads(noted.read_text()) if noted.is_file() else None
    if known == settings:
        log.info("Going on with the %s in %s.", counted(len(_done(parts)), "block"), parts)
        return
    if known is not None:
        changed = ", ".join(key for key in settings if settings[key] != known.get(key))
        log.warning("The blocks in %s are of another embedding (%s); they are made anew.", parts, changed)
    shutil.rmtree(parts, ignore_errors=True)
    try:
        parts.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{parts} cannot be made ({error.strerror}); choose another --out.") from error
    with replacing(noted) as temporary:
        temporary.write_text(json.dumps(settings))


def _done(parts: Path) -> list[Path]:
    return sorted(parts.glob("block-*.safetensors"))


def _blocks(count: int) -> list[range]:
    """`count` images in blocks, the last one shorter. Batches divide a block, so none of them lies in two."""
    return [range(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]


def _path(parts: Path, block: range) -> Path:
    return parts / f"block-{block.start:010}.safetensors"


@torch.inference_mode()
def _compute(
    parts: Path,
    images: Source,
    runner: Runner,
    take: Callable[[Batch], Tensor],
    here: Processes,
    progress: Progress,
) -> None:
    """This process's share of the blocks that are missing."""
    missing = [block for block in _blocks(len(images)) if not _path(parts, block).is_file()]
    mine = missing[here.rank :: here.world]
    ids = [id for block in mine for id in block]
    batches = runner.batches(
        images, ids, progress if here.first else None
    )  # loaders run on from block to block
    for block in mine:
        rows: list[tuple[Tensor, Tensor]] = []
        skipped: list[Skip] = []
        left = len(block)
        while left:
            batch = next(batches)
            if len(batch.ids):
                with runner.autocast():
                    features = take(runner.prepare(batch))
                rows.append((features.float().cpu(), batch.ids))
            skipped += batch.skipped
            left -= len(batch.ids) + len(batch.skipped)
        _keep(_path(parts, block), rows, [skip.name for skip in skipped])


def _keep(path: Path, rows: list[tuple[Tensor, Tensor]], skipped: list[str]) -> None:
    """Write a block; one in which nothing could be read holds the names of its images alone."""
    tensors = {}
    if rows:
        features, ids = zip(*rows, strict=True)
        tensors = {FEATURES: torch.cat(features).contiguous(), IDS: torch.cat(ids)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"skipped": json.dumps(skipped)})


def _finish(parts: Path, target: Path, images: Source, what: str, runner: Runner) -> Embedding:
    """Put the blocks together under the name that was asked for, and remove them."""
    skipped: list[str] = []
    sizes: list[int] = []
    shape: tuple[int, ...] = ()
    for path in _done(parts):
        with safe_open(path, framework="pt") as block:
            skipped += json.loads(block.metadata()["skipped"])
            if FEATURES in block.keys():  # noqa: SIM118  (no mapping)
                count, *rest = block.get_slice(FEATURES).get_shape()
                sizes.append(count)
                shape = tuple(rest)
    if not sizes:
        shutil.rmtree(parts)
        raise runner.nothing_read(len(images), images.name)

    def read() -> Iterator[Part]:
        for path in _done(parts):
            with safe_open(path, framework="pt") as block:
                if FEATURES in block.keys():  # noqa: SIM118
                    ids = block.get_tensor(IDS)
                    names = [images.key(id) for id in ids.tolist()]
                    yield Part(block.get_tensor(FEATURES).numpy(), ids.numpy(), names)

    files = WRITERS[target.suffix](target, read(), (sum(sizes), *shape))
    shutil.rmtree(parts)
    return Embedding(target, files, sum(sizes), shape, what, tuple(skipped))
