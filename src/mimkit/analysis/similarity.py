"""How alike layers are: linear centred kernel alignment (CKA; Kornblith et al. 2019) within a model and between two.

Figure 6 of "Revealing the Dark Secrets of Masked Image Modeling" (Xie et al. 2023). Estimated by default with the
unbiased HSIC_1 (Song et al. 2012) added up over blocks of 256 images and divided at the end (Nguyen et al. 2021):
biased HSIC over small blocks is far too high, and averages of CKA values are no CKA. Examples are images, their
features all tokens' channels in a row. Grams are float64. A block is fixed by the samples' index, not by the
loader's batches.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mimkit.analysis.frames import Frame, frame
from mimkit.analysis.hsic import LEAST, Sums
from mimkit.analysis.layers import block_names, tapping, tokens_of
from mimkit.analysis.probe import frozen
from mimkit.analysis.subjects import Feed, bare, check_weights, device_of, forward_of, name_of
from mimkit.errors import UserError

EXAMPLES = ("images", "tokens", "pooled")
ESTIMATORS = ("unbiased", "biased")
BLOCK = 256


@dataclass(frozen=True)
class CKA:
    """values: (layers of a, layers of b), unclipped: an unbiased estimate may lie a little outside 0 .. 1.

    images: used. left_out: images of a last block too small to estimate from. block: images in a block, None for all at
    once. stored_mib: the most features that were held.
    """

    model_a: str
    model_b: str
    layers_a: tuple[str, ...]
    layers_b: tuple[str, ...]
    values: np.ndarray
    estimator: str
    examples: str
    images: int
    left_out: int = 0
    block: int | None = BLOCK
    stored_mib: float = 0.0
    notes: tuple[str, ...] = field(default=())

    def to_frame(self) -> Frame:
        """Columns model, layer, model_b, layer_b (1..), metric, value, and both layers' names."""
        columns = ("model", "layer", "model_b", "layer_b", "metric", "value", "name", "name_b")
        return frame(self._rows(), columns)

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        for i, a in enumerate(self.layers_a):
            for j, b in enumerate(self.layers_b):
                value = float(self.values[i, j])
                yield self.model_a, i + 1, self.model_b, j + 1, f"cka_{self.estimator}", value, a, b


def cka(
    model_a: nn.Module,
    model_b: nn.Module | None,
    loader: Iterable[Any],
    examples: str = "images",
    estimator: str = "unbiased",
    block: int | None = BLOCK,
    names: tuple[str, str] | None = None,
    images: int | None = None,
    loader_b: Iterable[Any] | None = None,
) -> CKA:
    """CKA between the outputs of all blocks of `model_a` and those of `model_b` (None, or the same: of `model_a`
    itself) on the same images.

    loader: as for `attention_statistics`; loader_b: the same images in the same batches as `model_b` wants them
    (its own size and normalisation). examples: "images" (all tokens' channels in a row), "tokens" (each token an
    example) or "pooled" (the mean over tokens); prefix tokens are left out. block: images that the estimator takes
    at once, by sample index; None: all of them, which holds all features. images: read at most so many.

    Raises UserError for fewer than 4 images, constant features or NaN weights, naming the layer.
    """
    _check_words(examples, estimator, block)
    models = [bare(model_a)]
    if model_b is not None and bare(model_b) is not models[0]:
        models.append(bare(model_b))
    titles = list(names or (name_of(models[0]), name_of(models[-1])))
    for model, title in zip(models, titles, strict=False):
        check_weights(model, title)
    layers = [block_names(model) for model in models]
    sums = Sums(estimator, examples == "tokens")
    keeper = Blocks(block, [len(own) for own in layers])
    for ids, features in _features(models, layers, loader, loader_b, examples, images):
        for whole in keeper.add(ids, features):
            sums.add(*whole)
    for whole in keeper.rest():
        sums.add(*whole)
    if not sums.count:
        raise UserError(
            f"CKA needs at least {LEAST} images in a block, and there were {keeper.seen}; give it more images."
        )
    values = sums.ratio(list(zip(titles, layers, strict=False)))
    return CKA(
        titles[0],
        titles[-1] if len(models) > 1 else titles[0],
        tuple(layers[0]),
        tuple(layers[-1]),
        values,
        estimator,
        examples,
        keeper.seen - keeper.left_out,
        keeper.left_out,
        block,
        keeper.most / 2**20,
        keeper.notes(),
    )


def _check_words(examples: str, estimator: str, block: int | None) -> None:
    if examples not in EXAMPLES:
        raise UserError(f"CKA cannot take {examples!r} as examples; known are {', '.join(EXAMPLES)}.")
    if estimator not in ESTIMATORS:
        raise UserError(f"CKA has no estimator {estimator!r}; known are {', '.join(ESTIMATORS)}.")
    if block is not None and block < LEAST:
        raise UserError(f"CKA's block must hold at least {LEAST} images, not {block}.")


def _features(
    models: list[nn.Module],
    layers: list[list[str]],
    loader: Iterable[Any],
    loader_b: Iterable[Any] | None,
    examples: str,
    limit: int | None,
) -> Iterator[tuple[list[int], list[list[Tensor]]]]:
    """(sample ids, per model its layers' features (B, ...) float32 or better on the CPU) of each batch."""
    feeds = [Feed(loader, limit), *([Feed(loader_b, limit)] if loader_b is not None else [])]
    with frozen(*models):
        for batches in zip(*feeds, strict=True):
            made = []
            for number, (model, own) in enumerate(zip(models, layers, strict=True)):
                x = batches[min(number, len(batches) - 1)]
                with tapping(model, own) as outputs:
                    forward_of(model)(x.to(device_of(model)))
                    made.append([_examples(tokens_of(y, model, x), examples) for y in outputs.values()])
            yield feeds[0].ids[-len(batches[0]) :], made


def _examples(tokens: Tensor, how: str) -> Tensor:
    """(B, T, C) -> (B, T * C), (B, T, C) or (B, C)."""
    x = tokens.detach().cpu()
    x = x if x.dtype == torch.float64 else x.float()
    return {"images": x.flatten(1), "tokens": x}.get(how, x.mean(1))


class Blocks:
    """Collects features until a block of images is complete: block number = sample index // block.

    Images of blocks that never fill (a subset of a larger data set) are put together at the end, by ascending index.
    """

    def __init__(self, block: int | None, layers: list[int]) -> None:
        self.block, self.layers = block, layers
        self.open: dict[int, list[tuple[int, list[list[Tensor]]]]] = {}
        self.seen = self.left_out = self.held = self.most = 0

    def add(self, ids: list[int], features: list[list[Tensor]]) -> Iterator[list[list[Tensor]]]:
        """Take a batch; give the blocks that it completes, per model a list of (n, ...) per layer."""
        for row, sample in enumerate(ids):
            own = [[x[row] for x in layers] for layers in features]
            number = 0 if self.block is None else sample // self.block
            self.open.setdefault(number, []).append((sample, own))
            self.seen += 1
            self.held += _bytes(own)
            self.most = max(self.most, self.held)
            if self.block is not None and len(self.open[number]) == self.block:
                yield self._take(self.open.pop(number))

    def rest(self) -> Iterator[list[list[Tensor]]]:
        """What is left when the loader is empty."""
        left = sorted(
            (entry for entries in self.open.values() for entry in entries), key=lambda entry: entry[0]
        )
        self.open = {}
        size = self.block or max(1, len(left))
        for first in range(0, len(left), size):
            part = left[first : first + size]
            if len(part) < LEAST:
                self.left_out += len(part)
            else:
                yield self._take(part)

    def _take(self, entries: list[tuple[int, list[list[Tensor]]]]) -> list[list[Tensor]]:
        entries.sort(key=lambda entry: entry[0])
        self.held -= sum(_bytes(own) for _, own in entries)
        rows = [own for _, own in entries]
        return [
            [torch.stack([row[model].pop(0) for row in rows]) for _ in range(count)]  # freed layer by layer
            for model, count in enumerate(self.layers)
        ]

    def notes(self) -> tuple[str, ...]:
        if not self.left_out:
            return ()
        verb = "image was" if self.left_out == 1 else "images were"
        return (
            f"{self.left_out} {verb} left out: a last block of fewer than {LEAST} cannot be estimated from.",
        )


def _bytes(own: list[list[Tensor]]) -> int:
    return sum(x.numel() * x.element_size() for layers in own for x in layers)
