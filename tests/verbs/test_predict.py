"""Answers for images without labels: a line each, and what could not be read is no answer."""

import json
from pathlib import Path

import pytest

import mimkit
from mimkit.errors import DataError, UserError


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_gives_a_line_an_image_and_a_sheet(tuned: Path, faces: Path, tmp_path: Path) -> None:
    out, sheet = tmp_path / "deep" / "answers.jsonl", tmp_path / "sheet.png"
    found = mimkit.predict(tuned, faces, out=out, sheet=sheet, top=1)
    lines = rows(out)
    assert found.images == len(lines) == 200 and sheet.is_file()
    assert lines[0]["file"] == "face/000.png" and len(lines[0]["top"]) == 1
    truth = [line["file"].split("/")[0] for line in lines]
    assert sum(line["class"] == label for line, label in zip(lines, truth, strict=True)) > 140
    assert found.lines()[-1].startswith("200 images: ")


def test_a_file_and_a_glob_are_images_too(tuned: Path, faces: Path, tmp_path: Path) -> None:
    one = mimkit.predict(tuned, faces / "face" / "003.png", out=tmp_path / "a", sheet=tmp_path / "a.png")
    few = mimkit.predict(tuned, f"{faces}/other/10*.png", out=tmp_path / "b", sheet=tmp_path / "b.png")
    assert (one.images, few.images) == (1, 10)
    [line] = rows(tmp_path / "a")
    assert sum(line["top"].values()) == pytest.approx(1)
    assert list(line["top"].values()) == sorted(line["top"].values(), reverse=True)


def test_an_answer_does_not_depend_on_what_else_is_asked(tuned: Path, faces: Path, tmp_path: Path) -> None:
    mimkit.predict(tuned, faces / "face" / "003.png", out=tmp_path / "a", sheet=tmp_path / "a.png")
    mimkit.predict(tuned, faces, out=tmp_path / "b", sheet=tmp_path / "b.png")
    assert rows(tmp_path / "a")[0]["confidence"] == pytest.approx(
        rows(tmp_path / "b")[3]["confidence"], rel=1e-4
    )


def test_what_cannot_be_read_says_why(tuned: Path, faces: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes((faces / "face" / "000.png").read_bytes())
    (tmp_path / "set" / "b.png").write_bytes(b"no picture")
    found = mimkit.predict(tuned, tmp_path / "set", out=tmp_path / "o", sheet=tmp_path / "s.png")
    assert (found.images, found.skipped) == (1, 1)
    assert {"file": "b.png", "error": rows(tmp_path / "o")[1]["error"]} == rows(tmp_path / "o")[1]
    (tmp_path / "set" / "a.png").unlink()
    with pytest.raises(DataError, match=r"The only image of .* cannot be read"):
        mimkit.predict(tuned, tmp_path / "set", out=tmp_path / "o", sheet=tmp_path / "s.png")


def test_nothing_is_left_where_nothing_was_answered(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        mimkit.predict(tuned, tmp_path / "nowhere", out=tmp_path / "o.jsonl", sheet=tmp_path / "s.png")
    assert not list(tmp_path.iterdir())
