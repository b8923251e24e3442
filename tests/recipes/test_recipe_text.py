"""A recipe written as YAML is the same recipe when it is read again."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mimkit.recipes import load
from mimkit.recipes.schema import Recipe
from mimkit.recipes.text import read

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
recipes = st.builds(
    lambda about, path, run, lr, eps, seed, warmup, std, side, cell, writers, probe: Recipe.model_validate(
        {
            "about": about,
            "data": {"path": path, "size": side * cell, "mean": std, "std": std},
            "encoder": {"patch": cell},
            "train": {"run": run, "seed": seed},
            "optimiser": {"lr": lr, "eps": eps},
            "schedule": {"warmup_epochs": warmup},
            "log": {"writers": writers, "probe": {"path": probe} if probe else None},
        }
    ),
    texts,
    st.none() | texts,
    st.none()
    | st.sampled_from(
        ["off", "null", "1e-4", "1_000", "0x1f", "12:30", "2020-01-01", " a", "a ", "~", ".inf", "'", "\x85"]
    ),
    st.none() | positive,
    positive,
    st.integers(0, 2**70),
    st.integers(0, 400) | st.floats(0, 1e9),
    st.none() | st.lists(positive, min_size=1, max_size=5),
    st.integers(1, 50),
    st.integers(1, 50),
    st.lists(st.sampled_from(["tensorboard", "wandb"]), max_size=2),
    st.none() | texts,
)


def again(text: str) -> Recipe:
    document = read(text)
    assert document.faults == []
    return Recipe.model_validate(document.values)


@settings(deadline=None, max_examples=50)
@given(recipes)
def test_what_is_dumped_reads_back_equal(recipe: Recipe) -> None:
    assert again(load.dump(recipe)) == recipe


@settings(deadline=None, max_examples=50)
@given(recipes)
def test_what_is_shown_reads_back_equal(recipe: Recipe) -> None:
    assert again(load.show(recipe)) == recipe


@settings(deadline=None, max_examples=50)
@given(recipes)
def test_a_yaml_1_1_reader_reads_the_same_values(recipe: Recipe) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, tuple) else value

    assert yaml.safe_load(load.dump(recipe)) == plain(recipe.model_dump())


def test_floats_are_exact_and_tuples_stand_on_one_line() -> None:
    recipe = load.resolve("mae_tiny", ["optimiser.lr=0.1000000000000000055", "optimiser.eps=5e-324"])
    text = load.dump(recipe)
    assert "lr: 0.1\n" in text and "eps: 5.0e-324\n" in text
    assert "crop_ratio: [0.75, 1.3333333333333333]\n" in text
    assert math.isclose(again(text).data.crop_ratio[1], 4 / 3, rel_tol=0)


def test_show_has_a_wrapped_sentence_above_every_field() -> None:
    text = load.show(load.resolve("mae_base", ["log.probe.path=faces"]))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    for i, line in enumerate(lines):
        if (
            line.strip()
            and not line.lstrip().startswith("#")
            and ":" in line
            and "about" not in "".join(lines[i - 1 : i])
        ):
            inside_about = any(
                line.startswith(f"  {word}") for word in ("MAE with", "Result", "Time", "Command")
            )
            assert inside_about or lines[i - 1].lstrip().startswith("# "), line
    assert (
        "# Learning rate for 256 images a step: lr = base_lr x batch_size / 256.\n  base_lr: 0.00015\n"
        in text
    )


@pytest.mark.parametrize("name", load.names())
def test_a_saved_show_is_a_recipe_to_change_and_run(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(load.show(load.resolve(name)), encoding="utf-8")
    assert load.resolve(path) == load.resolve(name)
