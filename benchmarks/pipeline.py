"""The image pipeline per core: JPEG file -> decoded -> random resized crop of 224 -> mirrored, against the usual one.

Theirs is what MAE and its descendants run: an ImageFolder with Pillow and torchvision's transforms, which also bring
the crop to normalised floats in the worker. Ours hands over uint8 and normalises on the device (`time`: what a
loader's core spends on an image); `time_same_output` lets both end at uint8 crops. Both are antialiased bicubic. The
images are the photographs that come with scikit-image, scaled and saved at quality 90. One thread each.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.pairs import Aim, Benchmark, Lap, Options, Row, race

PHOTOGRAPHS = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
)
CROP = (224, 224)
QUALITY = 90


def write_photographs(folder: Path, width: int, height: int, copies: int) -> None:
    """The photographs as JPEGs of one size, in an ImageFolder's layout; `copies` of each."""
    import skimage.data
    from PIL import Image

    for name in PHOTOGRAPHS:
        picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        (folder / name).mkdir(parents=True)
        for number in range(copies):
            picture.save(folder / name / f"{number}.jpg", quality=QUALITY)


def ours(folder: Path) -> dict[str, Lap]:
    """The loader's own sample, without a mask."""
    from mimkit.data.loader import PretrainData
    from mimkit.data.sources import open_source

    data = PretrainData(open_source(folder), CROP, channels=3, masker=None, seed=0)

    def lap() -> None:
        for place in range(len(data)):
            data.sample(0, place)

    return {"time": lap, "time_same_output": lap}


def theirs(folder: Path) -> dict[str, Lap]:
    """MAE's recipe (its table 8) on torchvision's ImageFolder, to normalised floats as published or to uint8."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    bicubic = transforms.InterpolationMode.BICUBIC
    crop = transforms.RandomResizedCrop(CROP, scale=(0.2, 1.0), interpolation=bicubic)
    floats = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]

    def lap_ending_in(*last: Callable[[Any], Any]) -> Lap:
        steps = transforms.Compose([crop, transforms.RandomHorizontalFlip(), *last])
        data = ImageFolder(str(folder), steps)

        def lap() -> None:
            for place in range(len(data)):
                data[place]

        return lap

    return {"time": lap_ending_in(*floats), "time_same_output": lap_ending_in(transforms.PILToTensor())}


def rows(name: str, width: int, height: int, options: Options) -> list[Row]:
    rounds, copies = options.laps(15), 1 if options.quick or width > 1000 else 6
    images = copies * len(PHOTOGRAPHS)
    settings = {"images": f"{width} x {height}", "quality": QUALITY, "threads": 1, "rounds": rounds}
    alone = replace(options, threads=1, device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "photographs"
        write_photographs(folder, width, height, copies)
        result = race(partial(ours, folder), partial(theirs, folder), alone, rounds)
    return [result.time(name, settings, metric, per_lap=images) for metric in result.laps]


def _pair(name: str, width: int, height: int, limit: float) -> Benchmark:
    run: Callable[[Options], list[Row]] = partial(rows, name, width, height)
    return Benchmark(
        f"decode, crop, mirror {width} x {height} JPEG against Pillow + torchvision",
        run,
        {"time": Aim(limit)},
    )


BENCHMARKS = {
    "pipeline_500": _pair("pipeline_500", 500, 375, 0.42),
    "pipeline_2000": _pair("pipeline_2000", 2000, 1500, 0.32),
}
