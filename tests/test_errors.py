"""Numbers of things in words."""

import pytest

from mimkit.errors import counted, none_readable


@pytest.mark.parametrize(
    ("number", "noun", "form", "words"),
    [
        (1, "step", "", "1 step"),
        (0, "step", "", "0 steps"),
        (1200, "image", ",", "1,200 images"),
        (1, "class", "", "1 class"),
        (3, "better class", "", "3 better classes"),
        (2, "process", "", "2 processes"),
        (0.5, "trained block", "g", "0.5 trained blocks"),
        (1.0, "epoch", "g", "1 epoch"),
        (60, "epoch", "", "60 epochs"),
    ],
)
def test_one_thing_is_said_in_the_singular(number: float, noun: str, form: str, words: str) -> None:
    assert counted(number, noun, form) == words


def test_that_nothing_can_be_read_is_said_of_one_image_and_of_many() -> None:
    assert none_readable(1, "photos") == "The only image of photos cannot be read"
    assert none_readable(12, "photos") == "None of the 12 images of photos can be read"
