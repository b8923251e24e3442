"""What the tests of data share: small pictures, and the faulty files in two places."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mimkit.data.sources import Source

HERE = Path(__file__).parent
BROKEN = HERE / "broken"
BESIDE = HERE.parents[2] / "shared" / "data" / "broken"  # a larger set that may lie beside the checkout


def picture(height: int = 24, width: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A smooth picture, (H, W, C) uint8 (noise would not survive JPEG)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.asarray(small)[..., :channels].copy()


def encoded(image: np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, kind, **options)
    return file.getvalue()


def fill(folder: Path, *names: str) -> Path:
    """Writes a small JPEG, each a different one, under each name."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(picture(seed=seed)))
    return folder


def keys(source: Source) -> list[str]:
    return [source.key(i) for i in range(len(source))]


def labels(source: Source) -> list[int | None]:
    return [source.label(i) for i in range(len(source))]


def write_tar(path: Path, members: dict[str, bytes], **options: object) -> Path:
    with tarfile.open(path, "w", **options) as file:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def image(seed: int) -> bytes:
    return encoded(picture(seed=seed))


def broken_rows() -> list[Any]:
    """(folder, row of the manifest) of our own faulty files, and of those beside the checkout."""
    rows = [(BROKEN, row) for row in json.loads((BROKEN / "manifest.json").read_text())]
    if BESIDE.is_dir():
        for row in json.loads((BESIDE / "manifest.json").read_text()):
            place, _, path = row["path"].partition("/")
            if place == "images":
                rows.append((BESIDE / "images", {**row, "path": path}))
    return [pytest.param(folder, row, id=f"{folder.parent.name}-{row['path']}") for folder, row in rows]
