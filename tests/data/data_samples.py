"""What the tests of data share: small pictures, and the faulty files in two places."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

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


def broken_rows() -> list[Any]:
    """(folder, row of the manifest) of our own faulty files, and of those beside the checkout."""
    rows = [(BROKEN, row) for row in json.loads((BROKEN / "manifest.json").read_text())]
    if BESIDE.is_dir():
        for row in json.loads((BESIDE / "manifest.json").read_text()):
            place, _, path = row["path"].partition("/")
            if place == "images":
                rows.append((BESIDE / "images", {**row, "path": path}))
    return [pytest.param(folder, row, id=f"{folder.parent.name}-{row['path']}") for folder, row in rows]
