"""The recipe that is chosen for a folder of images fits the images and the machine, and the reasons say so."""

from itertools import product

import pytest

from mimkit.errors import DataError
from mimkit.recipes.choose import choose
from mimkit.recipes.load import resolve


@pytest.mark.parametrize(
    ("images", "side", "channels", "memory", "cuda"),
    list(
        product(
            [1, 2, 7, 24, 300, 4095, 50_000, 3_000_000],
            [1, 17, 32, 64, 100, 224, 3000],
            [1, 3, 5],
            [0.5, 10, 80],
            [True, False],
        )
    ),
)
def test_every_choice_is_a_valid_recipe_whose_batch_fits(
    images: int, side: int, channels: int, memory: float, cuda: bool
) -> None:
    name, overrides, reasons = choose(images, side, side + 5, channels, memory, cuda)
    recipe = resolve(name, overrides)
    assert recipe.train.batch_size <= images
    assert recipe.schedule.warmup_epochs < recipe.train.epochs
    assert recipe.data.size[0] <= max(side, 16)
    patches = (recipe.data.size[0] // recipe.encoder.patch[0]) ** 2
    assert 16 <= patches <= 200
    assert images > 1 or "Steps of a single image; the learning rate follows." in reasons
    assert all(reason.endswith(".") and "\n" not in reason for reason in reasons)


def test_photographs_on_a_cpu_get_the_tiny_recipe_as_it_is_but_longer() -> None:
    name, overrides, reasons = choose(300, 375, 500, 3, 16, cuda=False)
    assert (name, overrides) == ("mae_tiny", ["train.epochs=200", "schedule.warmup_epochs=10"])
    assert "no GPU" in reasons[0]


@pytest.mark.parametrize(
    ("images", "memory", "name"),
    [
        (1000, 80, "mae_small"),
        (50_000, 80, "mae_base"),
        (50_000, 6, "mae_small"),
        (1_281_167, 80, "mae_large"),
        (1_281_167, 16, "mae_base"),
    ],
)
def test_a_gpu_gets_a_model_for_the_number_of_images_and_its_memory(
    images: int, memory: float, name: str
) -> None:
    assert choose(images, 375, 500, 3, memory, cuda=True)[0] == name


def test_imagenet_on_a_large_gpu_gets_the_papers_recipe() -> None:
    name, overrides, _ = choose(1_281_167, 375, 500, 3, 80, cuda=True)
    assert resolve(name, overrides) == resolve("mae_large")


def test_tiny_images_get_a_smaller_crop_and_patch() -> None:
    _, overrides, reasons = choose(50_000, 32, 32, 3, 80, cuda=True)
    assert overrides[:2] == ["data.size=32", "encoder.patch=4"]
    assert any("32 pixels" in reason for reason in reasons)


def test_few_images_are_told_of_published_weights_and_many_are_not() -> None:
    few, many = (choose(n, 375, 500, 3, 80, cuda=True)[2] for n in (500, 50_000))
    assert any("encoder.init=" in reason for reason in few)
    assert not any("encoder.init=" in reason for reason in many)


def test_odd_channels_and_huge_images_are_remarked_on() -> None:
    reasons = choose(500, 3000, 4000, 5, 80, cuda=True)[2]
    assert any("5 channels" in reason for reason in reasons)
    assert any("mimkit data prepare" in reason for reason in reasons)


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to train on: 0 images"):
        choose(0, 10, 10, 3, 8, cuda=False)
