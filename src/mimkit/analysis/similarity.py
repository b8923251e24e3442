"""How alike layers are: linear centred kernel alignment (CKA; Kornblith et al. 2019) within a model and between two.

Figure 6 of "Revealing the Dark Secrets of Masked Image Modeling" (Xie et al. 2023). Estimated by default with the
unbiased HSIC_1 (Song et al. 2012) added up over blocks of 256 images and divided at the end (Nguyen et al. 2021):
biased HSIC over small blocks is far too high, and averages of CKA values are no CKA. Examples are images, their
features all tokens' channels in a row. Grams are float64. A block is fixed by the samples' index, not by the
loader's batches; its images go through the model side by side (`walk`), so that the features of one layer are held at
a time and not those of all.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mimkit.analysis.frames import Frame, frame
from mimkit.analysis.hsic import LEAST, Sums
from mimkit.analysis.layers import block_names, tokens_of
from mimkit.analysis.probe import frozen
from mimkit.analysis.subjects import Feed, bare, check_weights, device_of, forward_of, name_of
from mimkit.analysis.walk import walk
from mimkit.engine.memory import share_freed_memory
from mimkit.errors import UserError, nearest

EXAMPLES = {  # word -> what an example is, what a name says of it
    "images": ("each image is an example, all its tokens in a row", ""),
    "tokens": ("each token is an example", " of tokens"),
    "pooled": ("each image is an example, by the mean over its tokens", " of pooled tokens"),
}
ESTIMATORS = ("unbiased", "biased")
BLOCK = 256


@dataclass(frozen=True)
class Kind:
    """Which CKA: the choices of `cka`, where they are told. Raises UserError for words that it does not know."""

    examples: str = "images"
    estimator: str = "unbiased"
    block: int | None = BLOCK

    def __post_init__(self) -> None:
        if self.examples not in EXAMPLES:
            raise UserError(
                f"CKA cannot take {self.examples!r} as examples; known are {', '.join(EXAMPLES)}."
                f"{nearest(self.examples, EXAMPLES)}"
            )
        if self.estimator not in ESTIMATORS:
            raise UserError(
                f"CKA has no estimator {self.estimator!r}; known are {', '.join(ESTIMATORS)}."
                f"{nearest(self.estimator, ESTIMATORS)}"
            )
        if self.block is not None and self.block < LEAST:
            raise UserError(f"CKA's block must hold at least {LEAST} images, not {self.block}.")

    @property
    def biased(self) -> bool:
        return self.estimator == "biased"

    @property
    def usual(self) -> bool:
        """Whether the rules are made for it: they read figure 6 by unbiased CKA of images, whatever the block."""
        return not self.biased and self.examples == "images"

    @property
    def title(self) -> str:
        """ "CKA", "biased CKA of tokens": what is usual goes without saying."""
        return f"{'biased ' if self.biased else ''}CKA{EXAMPLES[self.examples][1]}"

    @property
    def metric(self) -> str:
        """Its name in tables: `cka_unbiased`, `cka_biased_tokens`."""
        return f"cka_{self.estimator}" + (f"_{self.examples}" if self.examples != "images" else "")


USUAL = Kind()


@dataclass(frozen=True)
class CKA:
    """values: (layers of a, layers of b), unclipped: an unbiased estimate may lie a little outside 0 .. 1.

    images: used. left_out: images of a last block too small to estimate from. block: images in a block, None for all at
    once. stored_mib: the most that was held of images that wait for their block and of features.
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

    @property
    def kind(self) -> Kind:
        return Kind(self.examples, self.estimator, self.block)

    @property
    def how(self) -> str:
        """How it was estimated, in words."""
        whole = self.block is None or self.images + self.left_out <= self.block
        over = f"all {self.images} images at once" if whole else f"blocks of up to {self.block} images"
        return f"{EXAMPLES[self.examples][0]}; {self.estimator} HSIC over {over}"

    def to_frame(self) -> Frame:
        """Columns model, layer, model_b, layer_b (1..), metric, value, and both layers' names."""
        columns = ("model", "layer", "model_b", "layer_b", "metric", "value", "name", "name_b")
        return frame(self._rows(), columns)

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        for i, a in enumerate(self.layers_a):
            for j, b in enumerate(self.layers_b):
                value = float(self.values[i, j])
                yield self.model_a, i + 1, self.model_b, j + 1, self.kind.metric, value, a, b


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
    at once, by sample index; None: all of them, which holds all images and a layer's features. images: read at most so
    many.

    Raises UserError for fewer than 4 images, constant features or NaN weights, naming the layer.
    """
    Kind(examples, estimator, block)  # raises for unknown words
    models = [bare(model_a)]
    if model_b is not None and bare(model_b) is not models[0]:
        models.append(bare(model_b))
    titles = list(names or (name_of(models[0]), name_of(models[-1])))
    for model, title in zip(models, titles, strict=False):
        check_weights(model, title)
    layers = [block_names(model) for model in models]
    sums, keeper = Sums(estimator, examples == "tokens"), Blocks(block)
    most = 0
    share_freed_memory()  # passes run one at a time, and each would keep the scratch of a whole one
    with frozen(*models), torch.compiler.set_stance("force_eager"):  # compiled code may not call the hooks
        for whole in _blocks(keeper, loader, loader_b, len(models), images):
            ready = [_Grams(sums, examples) for _ in models]
            for grams, model, own, batches in zip(ready, models, layers, whole, strict=True):
                grams.read(model, own, batches)
            sums.add_prepared(*(grams.found for grams in ready))
            most = max(most, keeper.held + _bytes(whole) + max(grams.held for grams in ready))
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
        most / 2**20,
        keeper.notes(),
    )


def _blocks(
    keeper: "Blocks", loader: Iterable[Any], loader_b: Iterable[Any] | None, models: int, limit: int | None
) -> Iterator[list[list[Tensor]]]:
    """Blocks of images: per model its batches (B, C, H, W), as large as the loader's first one."""
    feeds = [Feed(loader, limit), *([Feed(loader_b, limit)] if loader_b is not None else [])]
    for batches in zip(*feeds, strict=True):
        images = [batches[min(number, len(batches) - 1)] for number in range(models)]
        yield from keeper.add(feeds[0].ids[-len(images[0]) :], images)
    yield from keeper.rest()


class _Grams:
    """What HSIC needs of a block of images, of each layer of a model. held: bytes of features at once, at most."""

    def __init__(self, sums: Sums, examples: str) -> None:
        self.sums, self.examples = sums, examples
        self.found: list[tuple[Tensor, float]] = []
        self.held = 0

    def read(self, model: nn.Module, names: list[str], batches: list[Tensor]) -> None:
        """Layer after layer, all images at once; what a layer said is forgotten once its Gram matrix is there."""
        run, device = forward_of(model), device_of(model)
        passes = [walk(model, names, partial(_forward, run, x, device)) for x in batches]
        found = {}
        with ExitStack() as stack:
            for one in passes:
                stack.callback(one.close)
            for outputs in zip(*passes, strict=True):
                parts = [tokens_of(y, model, x).cpu() for (_, y), x in zip(outputs, batches, strict=True)]
                features = _examples(torch.cat(parts), self.examples)
                found[outputs[0][0]] = self.sums.prepared(features)
                size = features.numel() * features.element_size()
                self.held = self.held + size if self.sums.tokens else max(self.held, size)
        if missing := [name for name in names if name not in found]:
            raise UserError(
                f"{name_of(model)} did not run its block {missing[0]!r}; CKA looks at all of them."
            )
        self.found = [found[name] for name in names]


def _forward(run: Callable[[Tensor], Any], images: Tensor, device: torch.device) -> None:
    run(images.to(device))


def _examples(tokens: Tensor, how: str) -> Tensor:
    """(n, T, C) -> (n, T * C), (n, T, C) or (n, C)."""
    x = tokens if tokens.dtype == torch.float64 else tokens.float()
    return {"images": x.flatten(1), "tokens": x}.get(how, x.mean(1))


class Blocks:
    """Collects images until a block of them is complete: block number = sample index // block.

    Images of blocks that never fill (a subset of a larger data set) are put together at the end, by ascending index.
    held: bytes of images that wait.
    """

    def __init__(self, block: int | None) -> None:
        self.block = block
        self.open: dict[int, list[tuple[int, list[Tensor]]]] = {}
        self.seen = self.left_out = self.held = self.batch = 0

    def add(self, ids: list[int], images: list[Tensor]) -> Iterator[list[list[Tensor]]]:
        """Take a batch, (B, C, H, W) for each model; give the blocks that it completes."""
        self.batch = self.batch or len(ids)
        for row, sample in enumerate(ids):
            own = [x[row].cpu().clone() for x in images]  # a view would keep its whole batch
            number = 0 if self.block is None else sample // self.block
            self.open.setdefault(number, []).append((sample, own))
            self.seen += 1
            self.held += _bytes([own])
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

    def _take(self, entries: list[tuple[int, list[Tensor]]]) -> list[list[Tensor]]:
        """Per model the batches of a block, by ascending index."""
        rows = [own for _, own in sorted(entries, key=lambda entry: entry[0])]
        self.held -= _bytes(rows)
        return [list(torch.stack(list(images)).split(self.batch)) for images in zip(*rows, strict=True)]

    def notes(self) -> tuple[str, ...]:
        if not self.left_out:
            return ()
        verb = "image was" if self.left_out == 1 else "images were"
        return (
            f"{self.left_out} {verb} left out: a last block of fewer than {LEAST} cannot be estimated from.",
        )


def _bytes(rows: Iterable[Iterable[Tensor]]) -> int:
    return sum(x.numel() * x.element_size() for row in rows for x in row)
