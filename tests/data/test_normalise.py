"""Normalising: one float32 function for every stored type, and its inverse for pictures."""

import numpy as np
import pytest
import torch

from mimkit.data.batch import Batch
from mimkit.data.normalise import IMAGENET_MEAN, IMAGENET_STD, denormalise, normalise, prepare
from mimkit.errors import UserError


def batch(images: torch.Tensor) -> Batch:
    return Batch(images, torch.arange(len(images)))


def test_eight_bits_become_zero_to_one_then_lose_mean_and_deviation():
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    got = prepare(batch(images), "cpu", IMAGENET_MEAN, IMAGENET_STD).images.flatten()
    want = (np.array([0, 128 / 255, 1]) - IMAGENET_MEAN) / np.array(IMAGENET_STD)
    assert got.dtype == torch.float32 and np.allclose(got, want, atol=1e-6)


def test_sixteen_bits_of_the_same_picture_give_the_very_same_floats():
    eight = torch.arange(256).to(torch.uint8).view(1, 1, 16, 16)
    sixteen = (eight.int() * 257).to(torch.uint16)
    assert torch.equal(normalise(eight, [0.4], [0.3]), normalise(sixteen, [0.4], [0.3]))


def test_floats_are_taken_as_they_are_and_left_unchanged():
    images = torch.tensor([[-1.0, 3.5]]).view(1, 1, 1, 2)
    kept = images.clone()
    assert torch.equal(normalise(images, [0.0], [1.0]), kept)
    normalise(images, [1.0], [2.0])
    assert torch.equal(images, kept)


def test_the_result_is_contiguous_whatever_the_layout_of_the_batch():
    images = torch.randint(0, 255, (2, 5, 7, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    got = normalise(images, [0, 0, 0], [1, 1, 1])
    assert got.is_contiguous() and torch.equal(got, images.float() / 255)


def test_denormalising_gives_the_picture_back_cut_to_its_range():
    images = torch.randint(0, 65535, (2, 5, 4, 4)).to(torch.uint16)
    mean, std = [0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5]
    back = denormalise(normalise(images, mean, std), mean, std)
    torch.testing.assert_close(back, images.float() / 65535)
    assert denormalise(torch.full((1, 1, 1, 1), 9.0), [0.5], [0.5]).item() == 1


def test_ids_masks_and_the_rest_of_the_batch_stay():
    given = batch(torch.zeros(2, 1, 2, 2, dtype=torch.uint8))
    assert torch.equal(prepare(given, torch.device("cpu"), [0.0], [1.0]).ids, given.ids)


def test_a_count_of_channels_that_differs_is_refused_with_both_counts():
    with pytest.raises(UserError, match=r"have 5 channels, data.mean has 3 values"):
        prepare(batch(torch.zeros(1, 5, 2, 2)), "cpu", IMAGENET_MEAN, IMAGENET_STD)
