"""Checking a set of images: every kind of trouble is found, named, and given the action that a run would take."""

import json
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from mimkit.data.augment import resize
from mimkit.data.check import CheckReport, check_source, flat_share
from mimkit.data.loader import PretrainData
from mimkit.data.sources import open_source
from mimkit.errors import DataError

BROKEN = Path(__file__).parents[3] / "shared" / "data" / "broken"


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Six good RGB pictures and one of every kind of trouble."""
    root = tmp_path_factory.mktemp("mixed")
    for i in range(6):
        Image.fromarray(noise(60, 80, 3, seed=i)).save(root / f"good{i}.jpg")
    good = (root / "good0.jpg").read_bytes()
    (root / "twin.jpg").write_bytes(good)
    (root / "cut.jpg").write_bytes(good[: len(good) // 2])
    (root / "empty.jpg").write_bytes(b"")
    (root / "text.jpg").write_bytes(b"<html>not found</html>")
    (root / "notes.txt").write_text("a note")
    (root / ".hidden.jpg").write_bytes(good)
    Image.fromarray(noise(60, 80, 3, seed=7)).save(root / "png.jpg", "PNG")
    Image.fromarray(noise(1, 1, 3)).save(root / "one_pixel.png")
    Image.fromarray(noise(8, 800, 3)).save(root / "wide.png")
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(root / "flat.png")
    Image.fromarray(noise(60, 80)).save(root / "grey.png")
    dark = noise(60, 80).astype(np.uint16) * 16
    (root / "dark.png").write_bytes(imagecodecs.png_encode(dark))
    floats = np.full((60, 80), 0.5, np.float32)
    floats[:, :9] = np.nan
    tifffile.imwrite(root / "nan.tif", floats)
    bands = np.zeros((60, 80, 5), np.uint16)
    tifffile.imwrite(root / "bands.tif", bands, photometric="minisblack", planarconfig="contig")
    Image.fromarray(noise(60, 80, 3)).save(
        root / "moving.gif", save_all=True, append_images=[Image.fromarray(noise(60, 80, 3, seed=9))]
    )
    return root


@pytest.fixture(scope="module")
def report(mixed) -> CheckReport:
    return check_source(mixed, jobs=1)


@pytest.mark.parametrize(
    ("file", "kind", "action", "detail"),
    [
        ("cut.jpg", "broken", "skip", "truncated"),
        ("empty.jpg", "broken", "skip", "empty"),
        ("text.jpg", "broken", "skip", "not an image"),
        ("notes.txt", "ignored", "skip", "not an image"),
        (".hidden.jpg", "ignored", "skip", "hidden"),
        ("nan.tif", "nan", "error", "NaN"),
        ("bands.tif", "channels", "error", "has 5 channels where 3 most images have"),
        ("twin.jpg", "duplicate", "read", "the same bytes as good0.jpg"),
        ("png.jpg", "extension", "read", "PNG named .jpg"),
        ("one_pixel.png", "odd_size", "read", "1 x 1"),
        ("wide.png", "odd_size", "read", "8 x 800"),
        ("flat.png", "flat", "read", "near-constant"),
        ("dark.png", "dark", "read", "12 bits are used"),
        ("moving.gif", "frames", "read", "the first of 2 frames"),
    ],
)
def test_every_kind_of_trouble_is_found_with_its_action_and_reason(report, file, kind, action, detail):
    rows = [row for row in report.rows if row.file == file and row.kind == kind]
    assert len(rows) == 1 and rows[0].action == action and detail in rows[0].detail
    assert report.files()[file] == action


def test_what_is_in_order_is_not_complained_about(report):
    named = {row.file for row in report.rows}
    assert not named & {*(f"good{i}.jpg" for i in range(6)), "grey.png"}
    assert report.files()["grey.png"] == "read"


def test_two_processes_find_the_same_and_progress_ends_at_the_count(mixed, report):
    calls: list[tuple[int, int]] = []
    again = check_source(mixed, jobs=2, progress=lambda *now: calls.append(now))
    assert again == report and calls[-1] == (19, 19)


def test_the_json_form_has_the_keys_that_scripts_rely_on(report):
    found = json.loads(json.dumps(report.to_json()))
    assert set(found) >= {
        "path",
        "images",
        "readable",
        "problems",
        "duplicates",
        "formats",
        "sizes",
        "channels",
    }
    assert set(found) >= {"bits", "low_variance_patches", "files", "counts"}
    assert (found["images"], found["readable"]) == (19, 14)
    assert set(found["problems"][0]) == {"file", "kind", "severity", "action", "detail"}
    assert found["duplicates"] == [["good0.jpg", "twin.jpg"]]
    assert found["formats"]["JPEG"] == 7 and found["channels"] == {"3": 12, "1": 2}
    assert found["bits"] == {"8": 13, "16": 1}
    assert found["sizes"]["min"] == [1, 1] and found["sizes"]["median"] == [60, 80]
    assert 0 < found["low_variance_patches"] < 0.5


def test_images_of_one_size_have_it_said_once(tmp_path):
    for name in "ab":
        Image.fromarray(np.arange(30 * 40, dtype=np.uint8).reshape(30, 40)).save(tmp_path / f"{name}.png")
    assert "2 PNG; height x width 30 x 40\n" in check_source(tmp_path).summary()


def test_the_summary_counts_images_and_problems(report):
    text = report.summary()
    assert "19 images, 14 readable" in text and "3 broken" in text and "near-constant" in text


def test_a_run_skips_what_the_check_refuses_and_reads_the_rest(mixed, report):
    data = PretrainData(open_source(mixed), (32, 32), 3, None, seed=0)
    actions = report.files()
    for id in range(len(data)):
        skipped = {skip.id for skip in data.sample(0, id).skipped}
        assert (id in skipped) == (actions[data.source.key(id)] != "read")


def test_channels_asked_for_decide_what_fits(mixed):
    files = check_source(mixed, jobs=1, channels=5).files()
    assert files["bands.tif"] == "read" and files["good1.jpg"] == "error"


def test_class_folders_that_are_empty_unreadable_or_differ_by_case_are_named(tmp_path):
    for name in ("cat/1.jpg", "Cat/2.jpg", "dog/deep/3.jpg", "stray.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(20, 20, 3, seed=len(name))).save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "rotten").mkdir()
    (tmp_path / "rotten" / "x.jpg").write_bytes(b"")
    found = check_source(tmp_path, jobs=1, labels=True)
    actions = found.files()
    assert actions["empty/"] == actions["rotten/"] == "error" and actions["stray.jpg"] == "skip"
    assert actions["dog/deep/3.jpg"] == "read" and found.counts()["case"] == 1
    assert check_source(tmp_path, jobs=1).files()["stray.jpg"] == "read"


def test_a_file_named_in_a_list_that_is_not_there_is_missing(tmp_path):
    Image.fromarray(noise(20, 20, 3)).save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\ngone.png\n")
    found = check_source(tmp_path / "list.txt", jobs=1)
    assert [(row.file, row.kind, row.action) for row in found.rows] == [("gone.png", "missing", "skip")]


def test_a_stack_of_arrays_is_checked_too(tmp_path):
    stack = noise(4, 20, 20, 3)
    stack[2] = stack[0]
    np.save(tmp_path / "stack.npy", stack)
    found = check_source(tmp_path / "stack.npy", jobs=1)
    assert found.to_json()["formats"] == {"array": 4} and found.counts() == {"duplicate": 1}


def test_nothing_but_unreadable_files_still_gives_a_report(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    found = check_source(tmp_path, jobs=1)
    assert found.to_json()["readable"] == 0 and found.low_variance_patches == 0
    assert "1 image, 0 readable" in found.summary()


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no images"):
        check_source(tmp_path)


def test_the_share_of_flat_patches_is_counted_over_all_channels_together():
    image = np.zeros((32, 32, 2), np.uint8)
    image[:16, :16, 0] = noise(16, 16)
    image[:16, 16:, 1] = 40  # two channels that differ from each other do not make a flat patch
    assert flat_share(resize(image, (32, 32))) == 0.5
    assert flat_share(resize(image, (32, 32)), patch=64) == 0


@pytest.mark.skipif(not BROKEN.exists(), reason="needs the set of broken files beside the checkout")
def test_every_file_of_the_broken_set_gets_the_action_that_its_table_asks_for():
    table = json.loads((BROKEN / "manifest.json").read_text())
    for part, labels in (("images", False), ("folders", True)):
        actions = check_source(BROKEN / part, jobs=1, labels=labels).files()
        for entry in table:
            folder, _, file = entry["path"].partition("/")
            if folder != part or (file.endswith("/") and entry["action"] != "error"):
                continue  # a class folder that is in order, or left out, has no line of its own
            # a scan leaves files without an extension out; a list that names one reads it
            wanted = "skip" if file == "no_extension" else entry["action"]
            assert actions[file] == wanted, file
