"""`mimkit demo`: the whole way in a few minutes, on photographs that come inside the scikit-image wheel.

Tiles of a dozen photographs are written to a folder, a tiny MAE is pre-trained on them, hidden patches are filled in at
several ratios, and the frozen features are probed on 200 labelled pictures (100 faces, 100 non-faces: `lfw_subset`)
beside the same architecture with random weights.
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mimkit import plots
from mimkit.analysis.report import write_report
from mimkit.errors import UserError
from mimkit.recipes.load import RUN_RECIPE
from mimkit.verbs.look import probe, reconstruct
from mimkit.verbs.pretrain import run as pretrain

log = logging.getLogger(__name__)

PHOTOGRAPHS = (
    "astronaut",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "retina",
    "rocket",
    "stereo_motorcycle",
)
TILE, STRIDE = 128, 64  # pixels
RATIOS = (0.25, 0.5, 0.75, 0.9)
LONGEST = 640  # pixels: larger photographs are reduced, so that none outweighs the others
NEXT = (
    "",
    "Next, on your own images:",
    "  mimkit data check photos/",
    "  mimkit pretrain photos/",
    "  mimkit reconstruct runs/NAME photos/",
)
OVERRIDES = (  # raw pixels make the pictures; many small steps the most of two minutes
    "method.norm_pix=false",
    "train.batch_size=32",
    "optimiser.base_lr=8.0e-3",
    "train.epochs=40",
    "train.checkpoint_every=200",
    "log.samples_every=20",
)


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, as lines for the terminal, and the pictures it drew."""

    lines: list[str]
    pictures: list[Path]


def run(out: Path) -> DemoResult:
    """Pre-train, reconstruct and probe in the folder `out`; an earlier demo there is continued.

    Raises UserError when scikit-image is missing.
    """
    photographs, faces, folder = out / "photographs", out / "faces", out / "run"
    tiles = _written(photographs, write_photographs)
    _written(faces, write_faces)
    log.info(
        "1/3  Pre-training a tiny masked autoencoder on %d tiles of %d photographs", tiles, len(PHOTOGRAPHS)
    )
    started = (folder / RUN_RECIPE).exists()
    fresh = (f"data.path={photographs}", f"train.run={folder}", *OVERRIDES)
    pretrain(folder if started else "mae_tiny", () if started else fresh, resume=started)
    log.info("2/3  Filling in what was hidden")
    pictures = [
        reconstruct(folder, photographs, out / "reconstructions.png", RATIOS, images=6),
        write_report(folder).with_suffix(".png"),
    ]
    log.info("3/3  Probing the frozen features on 100 faces and 100 other pictures")
    table = probe(folder, (f"data.path={faces}",), None)
    pictures.append(
        plots.save(table.bars("Faces against other pictures, frozen features"), out / "probe.png")
    )
    return DemoResult([*table.lines(), *NEXT, "", "Pictures:"], pictures)


def write_photographs(folder: Path) -> None:
    """Overlapping tiles of the photographs as JPEG files, one sub-folder a photograph."""
    data = _scikit_image()
    from PIL import Image

    for name in PHOTOGRAPHS:
        picture = getattr(data, name)()
        picture = picture[0] if isinstance(picture, tuple) else picture  # the left one of a stereo pair
        image = Image.fromarray(picture).convert("RGB")
        image.thumbnail((LONGEST, LONGEST))
        target = folder / name
        target.mkdir(parents=True)
        for top in range(0, image.height - TILE + 1, STRIDE):
            for left in range(0, image.width - TILE + 1, STRIDE):
                tile = image.crop((left, top, left + TILE, top + TILE))
                tile.save(target / f"{top:04}_{left:04}.jpg", quality=92)


def write_faces(folder: Path) -> None:
    """The labelled pictures as class folders `face` and `other`, 25 x 25 pixels, grey."""
    from PIL import Image

    pictures = np.round(_scikit_image().lfw_subset() * 255).astype(np.uint8)  # (200, 25, 25), faces first
    for number, picture in enumerate(pictures):
        target = folder / ("face" if number < len(pictures) // 2 else "other")
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(target / f"{number:03}.png")


def _written(folder: Path, write: Callable[[Path], None]) -> int:
    """Fill `folder` once, whole or not at all; the number of pictures in it."""
    if not folder.exists():
        half = folder.with_name(folder.name + ".part")
        shutil.rmtree(half, ignore_errors=True)
        write(half)
        half.rename(folder)
    return sum(1 for path in folder.rglob("*") if path.is_file())


def _scikit_image() -> Any:
    try:
        import skimage.data
    except ImportError:
        raise UserError(
            "The demo uses the photographs that come with scikit-image, which is not installed; "
            "run `pip install 'mimkit[demo]'`."
        ) from None
    return skimage.data
