"""The command in messages is the one that goes on with the run."""

from pathlib import Path

import pytest

from mimkit.engine.command import resume_command


@pytest.mark.parametrize(
    ("recipe", "verb"),
    [
        ("name: a\ntask:\n  name: classify\n", "finetune"),
        ("name: a\nmethod:\n  name: mae\ntask: null\n", "pretrain"),
        ("about: 'task:'\n", "pretrain"),
        (None, "pretrain"),
    ],
)
def test_the_verb_is_that_of_the_recipe(recipe: str | None, verb: str, tmp_path: Path) -> None:
    if recipe is not None:
        (tmp_path / "recipe.yaml").write_text(recipe)
    assert resume_command(tmp_path) == f"mimkit {verb} {tmp_path} --resume"


def test_a_folder_with_a_blank_is_quoted_for_the_shell() -> None:
    assert resume_command(Path("my runs/first")) == "mimkit pretrain 'my runs/first' --resume"
