"""Files that verbs write: whole or not at all, and readable by everybody."""

import errno
import json
import os
from pathlib import Path

import pytest

from mimkit.errors import UserError
from mimkit.verbs.files import write_json, writing


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path: Path) -> None:
    content = {"loss": float("nan"), "rows": [{"share": float("inf")}, (1.5, 2)], "name": "NaN"}
    write_json(tmp_path / "deep" / "found.json", content)
    text = (tmp_path / "deep" / "found.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "loss": None,
        "rows": [{"share": None}, [1.5, 2]],
        "name": "NaN",
    }


def test_a_full_disk_leaves_the_file_that_was_there_and_asks_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*make room"), writing(path) as file:
        file.write("new")
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]
