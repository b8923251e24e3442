"""Channel statistics against NumPy's on the same pixels."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from mimkit.data.sources import open_source
from mimkit.data.stats import channel_stats
from mimkit.errors import DataError


def save(root: Path, dtype: type, channels: int, count: int = 5) -> np.ndarray:
    """`count` equal-sized TIFF files; their pixels (N, H, W, C)."""
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    levels = np.linspace(0.2, 0.8, channels)
    pixels = np.random.default_rng(0).random((count, 24, 32, channels)) * levels * top
    pixels = pixels.astype(dtype)
    for i, image in enumerate(pixels):
        bands = {"planarconfig": "contig"} if channels > 1 else {}
        tifffile.imwrite(root / f"{i}.tif", image.squeeze(), photometric="minisblack", **bands)
    return pixels


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(
    ("dtype", "scale", "bits"), [(np.uint8, 255, 8), (np.uint16, 65535, 16), (np.float32, 1, 32)]
)
def test_mean_and_deviation_are_numpys_in_units_of_the_full_range(tmp_path, channels, dtype, scale, bits):
    pixels = save(tmp_path, dtype, channels).astype(np.float64) / scale
    stats = channel_stats(open_source(tmp_path))
    assert np.allclose(stats.mean, pixels.mean(axis=(0, 1, 2)), atol=1e-12)
    assert np.allclose(stats.std, pixels.std(axis=(0, 1, 2)), atol=1e-12)
    assert (stats.channels, stats.bits, stats.images, stats.unreadable) == (channels, bits, 5, 0)


def test_every_image_counts_the_same_whatever_its_size(tmp_path):
    for name, value, side in (("a", 0, 100), ("b", 255, 10)):
        Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    stats = channel_stats(open_source(tmp_path))
    assert stats.mean == (0.5, 0.5, 0.5) and np.allclose(stats.std, 0.5)


def test_a_large_set_is_measured_on_a_part_that_is_always_the_same(tmp_path):
    save(tmp_path, np.uint8, 1, count=40)
    source = open_source(tmp_path)
    stats = channel_stats(source, limit=10)
    assert stats.images == 10 and stats == channel_stats(source, limit=10)
    assert stats.mean != channel_stats(source, limit=None).mean


def test_two_processes_measure_the_same_and_report_progress(tmp_path):
    save(tmp_path, np.uint8, 3, count=20)
    calls: list[tuple[int, int]] = []
    source = open_source(tmp_path)
    assert channel_stats(source, jobs=2, progress=lambda *now: calls.append(now)) == channel_stats(source)
    assert calls[-1] == (20, 20) and calls == sorted(calls)


def test_channels_are_what_most_images_have_and_grey_joins_colour(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"rgb{i}.png")
    Image.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)).save(tmp_path / "grey.png")
    tifffile.imwrite(
        tmp_path / "bands.tif", np.zeros((9, 9, 5), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    stats = channel_stats(open_source(tmp_path))
    assert (stats.channels, stats.images, stats.other) == (3, 4, 1)
    asked = channel_stats(open_source(tmp_path), channels=1)
    assert (asked.channels, asked.images, asked.unreadable) == (1, 4, 1)


def test_a_channel_that_never_varies_does_not_end_in_a_division_by_zero(tmp_path):
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(tmp_path / "flat.png")
    assert channel_stats(open_source(tmp_path)).std == (1.0,)


def test_unreadable_images_are_counted_and_only_unreadable_ones_an_error(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"The only image of .* cannot be read: 'bad.jpg'"):
        channel_stats(open_source(tmp_path))
    save(tmp_path, np.uint8, 3)
    stats = channel_stats(open_source(tmp_path))
    assert (stats.images, stats.unreadable) == (5, 1)
