"""Crops and resizing: always inside the image, equal to torchvision's and Pillow's arithmetic, any type, any size."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mimkit.data.augment import (
    Box,
    View,
    check_crop,
    crop_box,
    decode_size,
    draw_view,
    evaluation_size,
    on_reduced,
    random_resized_crop,
    resize,
    resize_centre,
    take_view,
)
from mimkit.data.decode import decode
from mimkit.errors import UserError

GOLDEN = Path(__file__).parents[3] / "shared" / "reference" / "mae" / "golden"
side = st.integers(1, 4000)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(shape: tuple[int, ...], dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    return (rng(seed).random(shape) * top).astype(dtype)


@given(side, side, st.integers(0, 2**32), st.floats(0.01, 1), st.floats(0.1, 1), st.floats(1, 10))
@settings(max_examples=200, deadline=None)
def test_a_crop_lies_inside_the_image_whatever_its_size(height, width, seed, low, narrow, wide):
    box = crop_box(rng(seed), height, width, (low, 1.0), (narrow, wide))
    assert box.top >= 0 and box.left >= 0 and box.height >= 1 and box.width >= 1
    assert box.top + box.height <= height and box.left + box.width <= width


@given(side, side, st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_a_crop_keeps_the_bounds_of_its_aspect_up_to_whole_pixels(height, width, seed):
    box = crop_box(rng(seed), height, width)
    assert (box.width - 0.5) / (box.height + 0.5) <= 4 / 3 + 1e-9
    assert (box.width + 0.5) / (box.height - 0.5) >= 3 / 4 - 1e-9


def test_a_strip_of_3000_by_8_gets_the_central_crop():
    assert crop_box(rng(), 8, 3000) == (0, 1494, 8, 11)
    assert crop_box(rng(), 3000, 8) == (1494, 0, 11, 8)
    assert crop_box(rng(), 1, 1) == (0, 0, 1, 1)


def test_the_area_of_crops_is_uniform_and_their_aspect_log_uniform():
    generator = rng()
    boxes = [crop_box(generator, 3000, 3000, (0.2, 0.5), (1 / 2, 2.0)) for _ in range(4000)]
    area = np.array([box.height * box.width / 9e6 for box in boxes])
    aspect = np.array([math.log2(box.width / box.height) for box in boxes])
    for values, low, high in ((area, 0.2, 0.5), (aspect, -1, 1)):
        expected = np.linspace(low, high, len(values))
        assert np.abs(np.sort(values) - expected).max() < 0.03 * (high - low)
    tops = np.array([box.top / (3000 - box.height) for box in boxes])
    assert np.abs(np.sort(tops) - np.linspace(0, 1, 4000)).max() < 0.03


def test_mirroring_happens_as_often_as_asked():
    generator = rng()
    assert not any(draw_view(generator, 10, 10, flip=0.0).mirrored for _ in range(50))
    assert all(draw_view(generator, 10, 10, flip=1.0).mirrored for _ in range(50))
    assert 400 < sum(draw_view(generator, 10, 10).mirrored for _ in range(1000)) < 600


def test_a_mirrored_crop_is_the_mirror_image_of_the_same_crop():
    image = noise((60, 80, 3))
    plain, mirrored = (random_resized_crop(rng(3), image, (32, 32), flip=flip) for flip in (0.0, 1.0))
    assert torch.equal(plain.flip(-1), mirrored)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_resizing_is_torchvisions_for_any_channels_and_type(channels, dtype):
    from torchvision.transforms.v2 import functional

    image = noise((37, 53, channels), dtype)
    got = resize(image, (24, 16))
    planes = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    bicubic = functional.InterpolationMode.BICUBIC
    want = functional.resize(
        planes if dtype != np.uint16 else planes.float(), [24, 16], bicubic, antialias=True
    )
    assert got.shape == (channels, 24, 16) and got.dtype == planes.dtype
    torch.testing.assert_close(
        got.float(), want.clamp(0, 65535).round() if dtype == np.uint16 else want.float()
    )


def test_sixteen_bits_do_not_wrap_round_at_an_edge():
    image = np.zeros((16, 16, 1), np.uint16)
    image[:, 8:] = 65535
    row = resize(image, (16, 64))[0, 0].float()
    assert row[:28].max() < 3000 and row[36:].min() > 62000


def test_resizing_equals_pillows_bicubic_within_one_grey_level():
    image = noise((90, 120, 3))
    want = np.asarray(Image.fromarray(image).resize((56, 48), Image.Resampling.BICUBIC))
    assert np.abs(resize(image, (48, 56)).permute(1, 2, 0).numpy().astype(int) - want).max() <= 1


def test_an_image_that_has_the_size_already_is_left_as_it_is_and_may_be_read_only():
    image = noise((8, 8, 3))
    image.setflags(write=False)
    assert np.array_equal(resize(image, (8, 8)).permute(1, 2, 0).numpy(), image)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 99), st.sampled_from([np.uint8, np.uint16]))
@settings(max_examples=60, deadline=None)
def test_any_image_down_to_one_pixel_gives_a_crop_of_the_size_asked(height, width, seed, dtype):
    crop = random_resized_crop(rng(seed), noise((height, width, 2), dtype), (12, 20))
    assert crop.shape == (2, 12, 20)


@given(side, side, st.integers(0, 2**32), st.integers(1, 8))
@settings(max_examples=150, deadline=None)
def test_a_reduced_picture_of_the_size_asked_for_still_has_the_crops_pixels(height, width, seed, count):
    generator, size = rng(seed), (224, 160)
    views = [draw_view(generator, height, width) for _ in range(count)]
    rows, columns = decode_size(views, size)
    assert 1 <= rows <= height and 1 <= columns <= width
    for view in views:
        assert view.box.height * rows / height >= min(size[0], view.box.height) - 1e-6
        assert view.box.width * columns / width >= min(size[1], view.box.width) - 1e-6


def photo_jpeg(width: int, height: int) -> bytes:
    astronaut = pytest.importorskip("skimage.data").astronaut()
    file = io.BytesIO()
    Image.fromarray(astronaut).resize((width, height), Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=90
    )
    return file.getvalue()


def test_a_crop_from_a_reduced_decode_equals_the_full_one_up_to_resampling():
    data, size = photo_jpeg(1600, 1200), (224, 224)
    full = decode(data, "photo", 3)
    for seed in range(6):
        view = draw_view(rng(seed), 1200, 1600, (0.5, 1.0))
        reduced = decode(data, "photo", 3, min_size=decode_size([view], size))
        scale = full.shape[0] // reduced.shape[0]
        assert scale > 1
        box = on_reduced(view, *reduced.shape[:2])
        # the box lies on whole pixels of the reduced picture, so at most half of one beside the one drawn
        assert np.abs(np.array(box) * scale - np.array(view.box)).max() <= scale / 2
        same_box = View(Box(*(scale * edge for edge in box)), view.mirrored, view.full)
        a, b = take_view(reduced, view, size).float(), take_view(full, same_box, size).float()
        assert (a - b).abs().mean() < 1.5  # grey levels


def test_the_evaluation_view_covers_a_non_square_size_and_takes_its_centre():
    image = np.zeros((100, 300, 1), np.uint8)
    image[:, 150:] = 255
    view = resize_centre(image, (48, 96))
    assert view.shape == (1, 48, 96)
    assert view[0, :, :44].max() == 0 and view[0, :, 52:].min() == 255
    assert resize_centre(noise((1, 1, 3)), (224, 224)).shape == (3, 224, 224)
    assert resize_centre(noise((8, 900, 3)), (32, 32)).shape == (3, 32, 32)


def test_the_evaluation_rule_is_256_for_224_and_the_size_itself_above():
    assert [evaluation_size((n, n))[0] for n in (224, 192, 96, 384)] == [256, 219, 109, 384]


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs the reference cases beside the checkout")
def test_the_evaluation_view_is_the_published_one():
    case = next(c for c in json.loads((GOLDEN / "cases.json").read_text()) if c["name"] == "eval_transform")
    want = np.load(GOLDEN / "eval_transform.npz")
    spec = case["inputs"]["image"]
    image = (np.random.RandomState(spec["seed"]).random_sample(spec["shape"]) * 256).astype(np.uint8)
    size = case["config"]["input_size"]
    mean, std = (torch.tensor(case["config"][name])[:, None, None] for name in ("mean", "std"))
    got = (resize_centre(image, (size, size)) / 255 - mean) / std
    assert np.abs(got[:, ::2, ::2].numpy() - want["pixels"]).max() <= 0.02 * max(
        1, np.abs(want["pixels"]).max()
    )
    for given_size, shorter in want["resize_size"]:
        assert evaluation_size((int(given_size), int(given_size)))[0] == shorter


def test_impossible_bounds_of_a_crop_are_refused_by_name():
    with pytest.raises(UserError, match=r"data.crop_scale is \[0.5, 0.2\]"):
        check_crop((0.5, 0.2), (0.75, 1.33))
    with pytest.raises(UserError, match=r"data.crop_ratio"):
        check_crop((0.2, 1.0), (0.0, 1.0))
