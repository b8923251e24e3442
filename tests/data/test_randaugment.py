"""RandAugment: its levels are a golden case; here are the operations beside timm's, and how they are drawn."""

from collections import Counter

import numpy as np
import pytest
import torch
from data_samples import picture
from PIL import Image

from mimkit.data.randaugment import NAMES, OPERATIONS, RandAugment, Step, argument, parse
from mimkit.errors import UserError

PLAIN = ("AutoContrast", "Equalize", "Invert")
ELSEWHERE = {  # ours -> the name of timm's table
    **{name: f"{name}Increasing" for name in ("Posterize", "Solarize", "Color", "Contrast", "Brightness")},
    "Sharpness": "SharpnessIncreasing",
    "TranslateX": "TranslateXRel",
    "TranslateY": "TranslateYRel",
}
every_operation = pytest.mark.parametrize("name", NAMES)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def applied(image: np.ndarray, name: str, magnitude: float, turned: bool = False) -> np.ndarray:
    rand = RandAugment().filled_with([0.5] * image.shape[2])
    made = rand.apply(tensor(image), [Step(name, argument(name, magnitude, turned))])
    return made.permute(1, 2, 0).numpy()


@every_operation
@pytest.mark.parametrize("magnitude", [0.0, 4.3, 9.7])
def test_an_operation_gives_the_pixels_that_timm_gives(name: str, magnitude: float) -> None:
    from timm.data import auto_augment

    image = picture(48, 80)
    theirs = auto_augment.NAME_TO_OP[ELSEWHERE.get(name, name)]
    values = [] if name in PLAIN else [argument(name, magnitude)]
    options = {"fillcolor": (128, 128, 128), "resample": Image.Resampling.BICUBIC}
    want = np.asarray(theirs(Image.fromarray(image), *values, **options))
    got = applied(image, name, magnitude)
    assert np.array_equal(got, want)


@every_operation
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels_goes_through(name: str, channels: int) -> None:
    image = np.concatenate([picture(24, 32, seed=i) for i in range(2)], axis=2)[..., :channels].copy()
    made = applied(image, name, 9.0)
    assert made.shape == image.shape and made.dtype == np.uint8


@every_operation
def test_channels_of_a_stack_change_as_each_would_alone(name: str) -> None:
    image = np.concatenate([picture(24, 32, seed=i) for i in range(2)], axis=2)  # (H, W, 6)
    made = applied(image, name, 9.0)
    if name == "Color":  # it speaks of channels together
        distance = [np.abs(x - x.mean(2, keepdims=True)).mean() for x in (image.astype(float), made)]
        assert distance[1] > 1.2 * distance[0]
    else:
        alone = [applied(image[..., c : c + 1], name, 9.0) for c in range(6)]
        assert np.array_equal(made, np.concatenate(alone, axis=2))


def test_the_turned_sign_mirrors_geometry_and_weakens_enhancement() -> None:
    assert argument("Rotate", 9, True) == -argument("Rotate", 9)
    assert argument("Color", 5, True) == pytest.approx(2 - argument("Color", 5))
    assert argument("Posterize", 9, True) == argument("Posterize", 9)


def test_translation_moves_by_a_share_of_the_side_and_uncovers_the_fill_colour() -> None:
    image = picture(20, 40)
    moved = applied(image, "TranslateX", 10.0)  # 0.45 of 40 pixels, read from the right
    assert np.array_equal(moved[:, :22], image[:, 18:]) and (moved[:, 22:] == 128).all()


def test_posterising_to_no_bits_is_black() -> None:
    assert argument("Posterize", 10) == 0
    assert not applied(picture(), "Posterize", 10.0).any()


def test_operations_are_drawn_evenly_and_half_of_them_applied() -> None:
    rand, counts, lengths = RandAugment(), Counter(), []
    for i in range(6000):
        steps = rand.draw(np.random.default_rng(i))
        counts.update(step.name for step in steps)
        lengths.append(len(steps))
    assert set(counts) == set(NAMES)
    assert all(abs(count / 400 - 1) < 0.2 for count in counts.values())  # 6000 * 2 * 0.5 / 15
    assert np.mean(np.array(lengths) == 0) == pytest.approx(0.25, abs=0.02)
    assert np.mean(np.array(lengths) == 2) == pytest.approx(0.25, abs=0.02)


def test_magnitudes_vary_about_nine_and_keep_to_ten() -> None:
    rand = RandAugment(probability=1.0)
    drawn = [step.argument for i in range(4000) for step in rand.draw(np.random.default_rng(i))]
    turned = [abs(value) / 3 for value in drawn if abs(value) > 20 and abs(value) <= 30]  # degrees
    assert max(turned) <= 10 and np.mean(turned) == pytest.approx(9, abs=0.15)


def test_every_image_takes_the_same_number_of_draws() -> None:
    rand, after = RandAugment(), set()
    for probability in (0.0, 1.0):
        rng = np.random.default_rng(1)
        RandAugment(probability=probability).draw(rng)
        after.add(float(rng.random()))
    assert len(after) == 1 and len(rand.draw(np.random.default_rng(1))) <= 2


def test_without_steps_the_picture_is_handed_back() -> None:
    image = tensor(picture())
    assert RandAugment().apply(image, []) is image


def test_deeper_pictures_are_refused() -> None:
    with pytest.raises(UserError, match="8 bits and these are uint16"):
        RandAugment().apply(torch.zeros(1, 4, 4, dtype=torch.uint16), [Step("Invert", 0)])


def test_the_fill_is_the_mean_of_the_data() -> None:
    assert RandAugment().filled_with((0.485, 0.456, 0.406)).fill == RandAugment().fill
    assert RandAugment().filled_with([0.5]).fill == (128,)


def test_timms_way_to_write_it_is_read() -> None:
    assert parse("rand-m9-mstd0.5-inc1") == RandAugment()
    assert parse("rand-m7-n3-mstd0.25-p0.8-inc1") == RandAugment(7, 0.25, 3, 0.8)


@pytest.mark.parametrize(
    "text", ["rand-m9-mstd0.5", "rand-m9-inc0", "augmix-m5", "rand-q9-inc1", "", "rand-mx-inc1"]
)
def test_what_is_no_randaugment_of_the_increasing_set_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"rand-m9-mstd0\.5-inc1"):
        parse(text)


def test_every_operation_has_a_place_in_the_table() -> None:
    assert len(NAMES) == len(OPERATIONS) == 15
