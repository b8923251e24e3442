"""A classifier judged: numbers that agree with each other, on images whose classes it knows."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import mimkit
from mimkit.errors import UserError
from mimkit.verbs.models import open_model


@pytest.fixture(scope="module")
def found(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("evaluation")
    mimkit.evaluate(tuned, json=out / "found.json", out=out)
    return json.loads((out / "found.json").read_text())


def test_numbers_classes_and_confusion_agree(found: dict) -> None:
    assert found["images"] == 40 and found["classes"] == ["face", "other"]
    right = [row["right"] for row in found["per_class"]]
    assert found["top1"] == sum(right) / 40 and found["top5"] == 1
    assert found["mean_per_class"] == pytest.approx(sum(count / 20 for count in right) / 2)
    assert [found["confusion"][i][i] for i in range(2)] == right
    assert [sum(row) for row in found["confusion"]] == [20, 20]
    assert len(found["mistakes"]) == 40 - sum(right)
    assert 0 <= found["calibration_error"] <= 1
    assert found["top1"] > 0.7  # far above the half that guessing gives


def test_what_is_measured_is_what_the_run_measured_last(found: dict, tuned: Path) -> None:
    rows = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["val/top1"] == found["top1"] and rows[-1]["val/loss"] == pytest.approx(found["loss"])


def test_pictures_lie_in_the_run_folder_unless_told_otherwise(tuned: Path, faces: Path) -> None:
    pictures = mimkit.evaluate(tuned, [f"data.path={faces}"]).pictures
    assert {path.parent for path in pictures} == {tuned / "evaluation"}
    assert {path.stem for path in pictures} >= {"confusion", "classes", "calibration"}
    assert all(path.is_file() for path in pictures)


def test_a_part_of_the_classes_keeps_their_numbers(tuned: Path, faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces / "other", tmp_path / "part" / "other")
    result = mimkit.evaluate(tuned, [f"data.path={tmp_path / 'part'}"], out=tmp_path)
    assert [row.images for row in result.rows] == [0, 100]
    assert result.numbers["mean_per_class"] == result.numbers["top1"] > 0.5


def test_an_unknown_class_is_named_with_its_nearest(tuned: Path, faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces, tmp_path / "set")
    (tmp_path / "set" / "face").rename(tmp_path / "set" / "faces")
    with pytest.raises(UserError, match=r"'faces'.*Did you mean 'face'\?"):
        mimkit.evaluate(tuned, [f"data.path={tmp_path / 'set'}"], out=tmp_path)


def test_unreadable_images_are_left_out_and_counted(tuned: Path, faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces, tmp_path / "set")
    (tmp_path / "set" / "face" / "000.png").write_bytes(b"no picture")
    result = mimkit.evaluate(tuned, [f"data.path={tmp_path / 'set'}"], tmp_path / "found.json", tmp_path)
    assert (result.skipped, result.numbers["images"]) == (1, 199)
    assert "1 unreadable" in result.lines()[0]
    [skip] = json.loads((tmp_path / "found.json").read_text())["skipped"]
    assert skip["file"] == "face/000.png"


def test_another_size_than_that_of_training_is_possible(tuned: Path, faces: Path, tmp_path: Path) -> None:
    result = mimkit.evaluate(tuned, [f"data.path={faces}", "data.size=48"], out=tmp_path)
    assert result.numbers["images"] == 200


def test_a_file_without_names_takes_those_of_the_images(
    tuned: Path, faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = open_model(tuned).task
    assert task is not None
    published = {name.removeprefix("encoder."): tensor for name, tensor in task.state_dict().items()}
    torch.save({"model": published}, tmp_path / "finetuned.pth")
    statistics = [f"data.mean={list(open_model(tuned).recipe.data.mean or ())}"]
    statistics.append(f"data.std={list(open_model(tuned).recipe.data.std or ())}")
    settings = [f"data.path={faces}", "data.size=32", "encoder.name=vit:48x3x3", *statistics]
    result = mimkit.evaluate(tmp_path / "finetuned.pth", settings, out=tmp_path)
    assert (
        result.numbers["top1"] == mimkit.evaluate(tuned, [f"data.path={faces}"], out=tmp_path).numbers["top1"]
    )
    assert "in the order of the images' classes" in caplog.text
    shutil.copytree(faces, tmp_path / "three")
    shutil.copytree(faces / "face", tmp_path / "three" / "third")
    with pytest.raises(UserError, match=r"2 classes.*3 classes"):
        mimkit.evaluate(tmp_path / "finetuned.pth", [f"data.path={tmp_path / 'three'}", *settings[1:]])


def test_a_model_without_a_head_is_sent_to_finetune(faces: Path) -> None:
    with pytest.raises(UserError, match="mimkit finetune"):
        mimkit.evaluate("random:vit_tiny", [f"data.path={faces}"])


def test_a_run_that_held_nothing_out_wants_images_named(tuned: Path) -> None:
    with pytest.raises(UserError, match=r"data.path="):
        mimkit.evaluate(tuned, ["data.val_share=0"])
