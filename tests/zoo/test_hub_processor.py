"""The image processor's file of an export for transformers: it feeds the model what our evaluation feeds it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mimkit
from mimkit.data.augment import evaluation_size, resize_centre
from mimkit.data.normalise import normalise

from .small_run import small_run

transformers = pytest.importorskip("transformers")

MEANS = "data.mean=[0.1, 0.2, 0.3, 0.4, 0.5]", "data.std=[0.5, 0.4, 0.3, 0.2, 0.1]"
ONE = ("data.channels=1", "data.mean=[0.3]", "data.std=[0.2]")


def exported(folder: Path, bits: int | None, *overrides: str) -> tuple[Path, Any]:
    run, _ = small_run(folder / "run", *overrides, bits=bits)
    path = mimkit.export(run, "hf", folder / "out", decoder=False).path
    return path, mimkit.load(run).recipe.data


def fed_by_us(image: np.ndarray, data: Any) -> Tensor:
    return normalise(resize_centre(image, data.size)[None], data.mean, data.std)


def picture(size: tuple[int, int], channels: int, bits: int) -> np.ndarray:
    """(H, W, C) of noise over the whole range of its type."""
    rng = np.random.default_rng(0)
    if bits == 32:
        return rng.normal(3.0, 7.0, (*size, channels)).astype(np.float32)
    kind = np.uint8 if bits == 8 else np.uint16
    return rng.integers(0, 2**bits, (*size, channels)).astype(kind)


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("overrides", [(), ONE, ("data.channels=5", *MEANS)], ids=["rgb", "grey", "five"])
def test_an_image_is_fed_as_evaluation_feeds_it(
    tmp_path: Path, bits: int, overrides: tuple[str, ...]
) -> None:
    folder, data = exported(tmp_path, bits, *overrides)
    image = picture(evaluation_size(data.size), data.channels, bits)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    theirs = processor(image, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    ours = fed_by_us(image, data)
    assert theirs.shape == ours.shape == (1, data.channels, *data.size)
    assert (theirs - ours).abs().max() <= 1e-5 * ours.abs().max()


def test_a_large_photograph_is_resized_and_cut_as_evaluation_does_it(tmp_path: Path) -> None:
    folder, data = exported(tmp_path, 8, "data.size=64")
    image = np.repeat(np.repeat(picture((10, 14), 3, 8), 16, axis=0), 16, axis=1)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    assert (theirs - fed_by_us(image, data)).abs().mean() <= 0.02


def test_a_rectangle_is_stretched_and_the_card_says_so(tmp_path: Path) -> None:
    folder, data = exported(tmp_path, 8, "data.size=[8, 32]")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    image = picture((8, 32), 3, 8)
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    want = normalise(torch.from_numpy(image).permute(2, 0, 1)[None], data.mean, data.std)
    assert (theirs - want).abs().max() <= 1e-5 * want.abs().max()
    assert "stretches images to 8 x 32" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("bits", "overrides", "said"),
    [
        (16, (), "divides by 65535"),
        (32, (), "takes values as they are stored"),
        (8, ("data.channels=5", *MEANS), "arrays of 5 channels"),
        (8, ONE, "grey images or arrays of one channel"),
    ],
)
def test_what_the_processor_supposes_stands_in_the_card_and_among_the_notes(
    tmp_path: Path, bits: int, overrides: tuple[str, ...], said: str
) -> None:
    run, _ = small_run(tmp_path / "run", *overrides, bits=bits)
    written = mimkit.export(run, "hf", tmp_path / "out")
    assert [note for note in written.notes if said in note]
    assert said in (written.path / "README.md").read_text()


def test_colour_of_8_bits_needs_no_word(tmp_path: Path) -> None:
    run, _ = small_run(tmp_path / "run", bits=8)
    assert mimkit.export(run, "hf", tmp_path / "out").notes == ()


def test_the_depth_of_the_images_survives_our_own_folder_and_transformers(tmp_path: Path) -> None:
    run, _ = small_run(tmp_path / "run", bits=16)
    own = mimkit.export(run, "safetensors", tmp_path / "own").path
    again = mimkit.export(mimkit.export(own, "hf", tmp_path / "hf").path, "hf", tmp_path / "again").path
    processor = json.loads((again / "preprocessor_config.json").read_text())
    assert processor["rescale_factor"] == pytest.approx(1 / 65535)
