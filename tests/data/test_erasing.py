"""Random erasing: the rectangle's rule is a golden case; here are shares, bounds, and the noise."""

import numpy as np
import pytest
import torch

from mimkit.data.augment import Box
from mimkit.data.erasing import NOTHING, Erasing, boxes_tensor, erase, inside
from mimkit.errors import UserError


def draws(erasing: Erasing, size: tuple[int, int], n: int = 400) -> list[Box]:
    return [erasing.draw(np.random.default_rng(i), size) for i in range(n)]


def test_a_quarter_of_the_images_is_erased_by_default() -> None:
    hit = [box != NOTHING for box in draws(Erasing(), (224, 224), 2000)]
    assert 0.22 < np.mean(hit) < 0.28


@pytest.mark.parametrize("size", [(224, 224), (32, 96), (5, 7)])
def test_a_rectangle_lies_inside_and_is_smaller_than_the_image_in_both_sides(size: tuple[int, int]) -> None:
    found = [box for box in draws(Erasing(probability=1.0), size) if box != NOTHING]
    assert found
    for top, left, height, width in found:
        assert 0 <= top <= top + height <= size[0] and 0 <= left <= left + width <= size[1]
        assert height < size[0] and width < size[1]


def test_area_and_aspect_keep_to_their_bounds() -> None:
    for _, _, height, width in draws(Erasing(1.0, area=(0.1, 0.2), aspect=(0.5, 2.0)), (200, 200)):
        assert 0.09 < height * width / 200**2 < 0.21 and 0.48 < height / width < 2.1


def test_an_image_of_one_pixel_is_left_alone() -> None:
    boxes = boxes_tensor(draws(Erasing(1.0), (1, 1), 20))
    assert boxes is None


def test_a_probability_outside_0_to_1_is_refused() -> None:
    with pytest.raises(UserError, match="from 0 to 1"):
        Erasing(probability=1.5)


def test_pixels_outside_the_boxes_keep_their_bits_and_those_inside_are_standard_normal() -> None:
    torch.manual_seed(0)
    images = torch.full((2, 3, 64, 96), 7.0)
    erased = erase(images, torch.tensor([[10, 20, 40, 60], [0, 0, 0, 0]]))
    assert torch.equal(erased[1], images[1])
    noise = erased[0, :, 10:50, 20:80].clone()
    erased[0, :, 10:50, 20:80] = 7.0
    assert torch.equal(erased, images)
    assert abs(float(noise.mean())) < 0.05 and abs(float(noise.std()) - 1) < 0.05
    assert noise.unique().numel() > 0.99 * noise.numel()  # a draw for every pixel and channel


def test_the_map_of_a_box_counts_its_pixels() -> None:
    boxes = torch.tensor([[1, 2, 3, 4], [0, 0, 5, 6], [0, 0, 0, 0]])
    assert inside(boxes, (5, 6)).flatten(1).sum(1).tolist() == [12, 30, 0]


def test_a_batch_in_which_nothing_is_erased_carries_no_boxes() -> None:
    assert boxes_tensor([NOTHING, NOTHING]) is None
    assert boxes_tensor([NOTHING, Box(1, 2, 3, 4)]).tolist() == [[0, 0, 0, 0], [1, 2, 3, 4]]
