"""Distance, entropy and divergence of all heads of a ViT-B against a plain forward pass over the same images.

What looking costs: the statistics overhear the model's own forward pass and recompute the scores of its attention from
q and k, nothing else. A second row holds the claim that memory does not depend on the number of images: the peak above
the built model behind 64 images (theirs), and behind 512 more in the same process (ours).
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.pairs import Aim, Benchmark, Contender, Lap, Options, Row, race
from mimkit import encoders
from mimkit.analysis.attention import attention_statistics
from mimkit.engine.devices import autocast


class Case(NamedTuple):
    """Encoder's name, image side in pixels, images in a batch, images of a lap, and those of the memory's two sides."""

    encoder: str
    size: int
    batch: int
    images: int
    few: int
    many: int


FULL = Case("vit_base", 224, 8, 32, 64, 512)
QUICK = Case("vit_tiny", 64, 4, 8, 16, 64)


def built(case: Case, options: Options) -> nn.Module:
    torch.manual_seed(0)
    return encoders.build(case.encoder, size=(case.size, case.size)).to(options.device).eval()


def images(case: Case, count: int, device: str) -> Iterator[Tensor]:
    """Batches that are made one at a time, the same ones in every process."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count // case.batch):
        yield torch.randn(case.batch, 3, case.size, case.size, generator=generator).to(device)


def ours(case: Case, counts: dict[str, int], precision: str, options: Options) -> dict[str, Lap]:
    model = built(case, options)

    def look(count: int) -> None:
        with autocast(precision, torch.device(options.device)):
            attention_statistics(model, images(case, count, options.device))

    return {metric: partial(look, count) for metric, count in counts.items()}


def theirs(case: Case, counts: dict[str, int], precision: str, options: Options) -> dict[str, Lap]:
    model = built(case, options)

    def run(count: int) -> None:
        with torch.no_grad(), autocast(precision, torch.device(options.device)):
            for batch in images(case, count, options.device):
                model(batch)

    return {metric: partial(run, count) for metric, count in counts.items()}


def rows(options: Options) -> list[Row]:
    case, rounds = QUICK if options.quick else FULL, options.laps(7)
    settings = {
        "model": case.encoder,
        "size": case.size,
        "batch": case.batch,
        "device": options.device,
        "threads": options.threads,
    }
    made = []
    for precision, metric in (("fp32", "time"), ("bf16", "time_bf16")):
        sides = (partial(side, case, {metric: case.images}, precision, options) for side in (ours, theirs))
        result = race(*sides, options, rounds)
        told = settings | {"precision": precision, "images": case.images, "rounds": rounds}
        made.append(result.time("attention_statistics", told, metric, per_lap=case.images))
    told = settings | {"precision": "fp32", "images": f"{case.many} against {case.few}"}
    return [*made, growth(case, told, options)]


def growth(case: Case, settings: dict[str, Any], options: Options) -> Row:
    """The peak above the built model behind `few` images (theirs), and behind `many` more in the same process (ours):
    that of one and the same lap scatters by a sixth from process to process, as the heap happens to lie.
    """
    make = partial(ours, case, {"few": case.few, "many": case.many}, "fp32", options)
    with Contender(make, options) as process:
        peaks = []
        for metric in process.ready():
            process.lap(metric)
            peaks.append(process.peak())
    few, many = peaks
    return Row("attention_statistics", "peak_memory", many, few, many / few, "MiB", settings)


BENCHMARKS = {
    "attention_statistics": Benchmark(
        "distance, entropy and KL of all heads, ViT-B, against a plain forward pass",
        rows,
        {"time": Aim(1.25), "peak_memory": Aim(1.05)},
    )
}
