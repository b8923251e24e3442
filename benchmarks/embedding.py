"""Features of a folder of JPEGs in a .npy file: `mimkit embed` against the loop that everybody writes.

Theirs is timm's model, torchvision's ImageFolder and transforms, a DataLoader and `numpy.save`. Both start from a file
of weights and end with a file of features: building the model, reading, decoding, resizing and computing all count. The
weights, the images, the resolution (224 of 256), the batch, the loader processes, precision and threads are the same,
and the features must agree before anything is timed.

A ViT-B on a CPU spends nearly all its time in the model, so the second metric takes a ViT-tiny, which shows what stands
around the model.
"""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.pairs import Aim, Benchmark, Lap, Options, Row, race
from benchmarks.pipeline import PHOTOGRAPHS, write_photographs
from mimkit.recipes.build import FEW_IMAGES, default_workers
from mimkit.verbs.running import CHUNK
from mimkit.zoo.export import TIMM_ARCHITECTURES

WIDTH, HEIGHT, CROP, RESIZED = 500, 375, 224, 256
TOLERANCE = 0.02  # of the features' sum: two ways to resize differ by single steps of 255


class Case(NamedTuple):
    """A model and how many copies of each photograph it sees, at least; more on a GPU."""

    metric: str
    encoder: str
    copies: int


CASES = (Case("time", "vit_base", 6), Case("time_tiny", "vit_tiny", 80))
QUICK = (Case("time", "vit_tiny", 1),)
ON_GPU = 20  # times as many images


class Side(NamedTuple):
    """What both are given."""

    case: Case
    weights: Path
    images: Path
    options: Options
    workers: int


def ours(side: Side) -> dict[str, Lap]:
    """The verb."""
    from mimkit.verbs.embed import embed

    out = side.weights.with_name("ours.npy")
    settings = ["train.precision=fp32", f"train.device={side.options.device}", f"data.workers={side.workers}"]

    def lap() -> float:
        embed(side.weights, side.images, out, settings, pooling="cls")
        return _checksum(out)

    return {side.case.metric: lap}


def theirs(side: Side) -> dict[str, Lap]:
    """A page of code as in timm's documentation."""
    import timm
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    out = side.weights.with_name("theirs.npy")
    steps = transforms.Compose(
        [
            transforms.Resize(RESIZED, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(CROP),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    device = side.options.device

    @torch.inference_mode()
    def lap() -> float:
        model = timm.create_model(TIMM_ARCHITECTURES[side.case.encoder], num_classes=0)
        model.load_state_dict(load_file(side.weights))
        model.to(device).eval()
        loader = DataLoader(
            ImageFolder(str(side.images), steps),
            batch_size=CHUNK,
            num_workers=side.workers,
            pin_memory=device == "cuda",
        )
        rows = [model(images.to(device, non_blocking=True)).cpu().numpy() for images, _ in loader]
        np.save(out, np.concatenate(rows))
        return _checksum(out)

    return {side.case.metric: lap}


def _checksum(out: Path) -> float:
    """The sum of the features' sizes: the two list the images in one order, but a checksum needs none."""
    return float(np.abs(np.load(out)).sum(dtype=np.float64))


def rows(options: Options) -> list[Row]:
    made = []
    for case in QUICK if options.quick else CASES:
        case = case._replace(copies=case.copies * (ON_GPU if options.device == "cuda" else 1))
        made.append(_race(case, options))
    return made


def _race(case: Case, options: Options) -> Row:
    import timm

    images, rounds = case.copies * len(PHOTOGRAPHS), options.laps(7)
    workers = (
        default_workers(options.device == "cuda") if images > FEW_IMAGES else 0
    )  # as the verb chooses them
    with tempfile.TemporaryDirectory() as scratch:
        folder, weights = Path(scratch) / "photographs", Path(scratch) / "weights.safetensors"
        write_photographs(folder, WIDTH, HEIGHT, case.copies)
        torch.manual_seed(0)
        model = timm.create_model(TIMM_ARCHITECTURES[case.encoder], num_classes=0)
        save_file(model.state_dict(), weights)
        side = Side(case, weights, folder, options, workers)
        result = race(partial(ours, side), partial(theirs, side), options, rounds, TOLERANCE)
    settings: dict[str, Any] = {
        "model": case.encoder,
        "images": images,
        "pixels": f"{WIDTH} x {HEIGHT}",
        "batch": CHUNK,
        "workers": workers,
        "precision": "fp32",
        "device": options.device,
        "threads": options.threads,
        "rounds": rounds,
    }
    row = result.time("embed", settings, case.metric, per_lap=images)
    return replace(row, settings=row.settings | {"images_per_s": round(1 / row.ours, 1)})


BENCHMARKS = {
    "embed": Benchmark(
        "features of a folder of JPEGs with a ViT-B against timm, torchvision and a DataLoader",
        rows,
        {"time": Aim(1.0)},
    )
}
