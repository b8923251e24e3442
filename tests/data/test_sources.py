"""Whatever holds images opens with one call, gives the same bytes by number, and says in one sentence what is wrong."""

import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from data_samples import BESIDE, encoded, fill, image, keys, labels, picture, write_tar

from mimkit.data.decode import DecodeError, decode
from mimkit.data.formats.pattern import _regex, expand_braces
from mimkit.data.sources import Source, open_source
from mimkit.errors import DataError, UserError

# --- one contract for all kinds


def folder_case(root: Path) -> str:
    return str(fill(root / "set", "a/1.jpg", "a/2.jpg", "b/1.jpg"))


def glob_case(root: Path) -> str:
    return str(fill(root / "set", "1.jpg", "2.jpg", "3.jpg") / "*.jpg")


def list_case(root: Path) -> str:
    fill(root / "set", "1.jpg", "2.jpg", "3.jpg")
    (root / "list.txt").write_text(f"# three\nset/2.jpg\n\nset/1.jpg\r\n{root / 'set' / '3.jpg'}\n")
    return str(root / "list.txt")


def csv_case(root: Path) -> str:
    fill(root / "set", "1.jpg", "2.jpg", "3.jpg")
    (root / "table.csv").write_text("path,label\nset/1.jpg,x\nset/2.jpg,y\nset/3.jpg,x\n")
    return str(root / "table.csv")


def tar_case(root: Path) -> str:
    write_tar(
        root / "s-0.tar",
        {"1.jpg": image(0), "1.cls": b"4\n", "2.png": encoded(picture(), "PNG"), "2.cls": b"10"},
    )
    write_tar(root / "s-1.tar", {"3.jpg": image(1), "3.cls": b"4"})
    return str(root / "s-{0..1}.tar")


def npy_case(root: Path) -> str:
    np.save(root / "stack.npy", np.stack([picture(seed=seed) for seed in range(3)]))
    return str(root / "stack.npy")


CASES = [folder_case, glob_case, list_case, csv_case, tar_case, npy_case]
LABELLED = [folder_case, csv_case, tar_case]


@pytest.mark.parametrize("case", CASES)
def test_every_source_keeps_the_contract(case: Callable[[Path], str], tmp_path: Path) -> None:
    source = open_source(case(tmp_path))
    assert isinstance(source, Source)
    assert len(source) == 3 and len(set(keys(source))) == 3
    assert source.classes == () and labels(source) == [None] * 3
    pixels = [decode(source.read(i), source.key(i), 3) for i in range(3)]
    assert all(found.shape == (24, 32, 3) for found in pixels)
    assert any((pixels[0] != other).any() for other in pixels[1:])
    again = pickle.loads(pickle.dumps(source))
    assert keys(again) == keys(source) and again.digest() == source.digest()
    assert (decode(again.read(2), "k", 3) == pixels[2]).all()
    assert open_source(case(tmp_path)).digest() == source.digest()


@pytest.mark.parametrize("case", CASES)
def test_a_number_outside_the_source_is_an_error(case: Callable[[Path], str], tmp_path: Path) -> None:
    source = open_source(case(tmp_path))
    for i in (3, -1):
        with pytest.raises(IndexError):
            source.read(i)


@pytest.mark.parametrize("case", LABELLED)
def test_labels_are_places_in_the_sorted_classes(case: Callable[[Path], str], tmp_path: Path) -> None:
    source = open_source(case(tmp_path), labels=True)
    assert len(source.classes) == 2 and set(labels(source)) == {0, 1}
    assert source.digest() != open_source(case(tmp_path)).digest()


@pytest.mark.parametrize("case", [glob_case, list_case, npy_case])
def test_labels_asked_of_what_has_none_is_a_mistake_with_a_way_out(
    case: Callable[[Path], str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="label"):
        open_source(case(tmp_path), labels=True)


@pytest.mark.parametrize("case", [folder_case, list_case, csv_case, npy_case, tar_case])
def test_the_same_lies_behind_an_fsspec_address(case: Callable[[Path], str], tmp_path: Path) -> None:
    """Copied into fsspec's memory store, a source gives the same keys and bytes as on the disk."""
    path = case(tmp_path)
    if case is list_case:
        Path(path).write_text("set/2.jpg\nset/1.jpg\n#set/0.jpg\n")
    store = fsspec.filesystem("memory")
    base = f"/{tmp_path.name}"
    for file in tmp_path.rglob("*.*"):
        if file.is_file():
            store.pipe_file(f"{base}/{file.relative_to(tmp_path)}", file.read_bytes())
    there = open_source("memory:/" + base + path.removeprefix(str(tmp_path)), labels=case in LABELLED)
    here = open_source(path, labels=case in LABELLED)
    assert keys(there) == keys(here) and there.digest() == here.digest() and there.kind == here.kind
    for i in range(len(here)):
        assert (decode(there.read(i), "k") == decode(pickle.loads(pickle.dumps(here)).read(i), "k")).all()
    assert open_source(f"file://{path}").kind == here.kind


def test_a_file_that_left_an_object_store_is_missing() -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/leaving/1.jpg", image(0))
    source = open_source("memory://leaving")
    store.rm("/leaving/1.jpg")
    with pytest.raises(DecodeError, match="missing"):
        source.read(0)


def test_an_object_store_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "info", fail)
    with pytest.raises(UserError, match="memory://x cannot be read: no route to host"):
        open_source("memory://x")


def test_a_glob_in_an_object_store(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for name in ("x/1.jpg", "x/2.png", "y/3.jpg"):
        store.pipe_file(f"/globbed/{name}", image(0))
    assert keys(open_source("memory://globbed/*/*.jpg")) == ["x/1.jpg", "y/3.jpg"]


# --- what cannot be opened


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("", UserError, "is empty"),
        ("nowhere", UserError, "does not exist"),
        ("imagse", UserError, "Did you mean 'images'"),
        ("nowhere/deeper", UserError, "Nor does"),
        ("images/no*.jpg", UserError, "matches nothing"),
        ("images/{1,7}.jpg", UserError, "7.jpg does not exist"),
        ("empty", DataError, "found nothing at all"),
        ("texts", DataError, r"looked for \.jpg .* found 2 not an image \(\.txt\), 1 hidden"),
        ("texts/a.txt", DataError, "none that was looked for is there"),
        ("blank.txt", DataError, "names no files"),
        ("a.zip", UserError, "unpack"),
        ("a.tar.gz", UserError, "unpack"),
        ("zipped.tar", UserError, "compressed"),
        ("text.tar", DataError, "cannot be read as a tar"),
        ("empty.tar", DataError, "no images"),
        ("a.doc", UserError, "cannot be taken for images"),
        ("pipe", UserError, "pipe"),
        ("weird://x/y", UserError, "weird"),
        ("memory://nothing/here", UserError, "does not exist"),
        ("memory://nothing/*.jpg", UserError, "matches nothing"),
        ("stacks", DataError, r"1 not an image \(\.npy\)"),
    ],
)
def test_a_path_that_is_no_source_gives_one_clear_sentence(
    path: str, error: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "images/1.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt", ".c"):
        (tmp_path / "texts" / name).write_text("hello")
    (tmp_path / "blank.txt").write_text("\n\n")
    for name in ("a.zip", "a.tar.gz", "a.doc", "text.tar"):
        (tmp_path / name).write_text("x" * 2000)
    (tmp_path / "zipped.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    write_tar(tmp_path / "empty.tar", {"a.txt": b"x"})
    (tmp_path / "stacks").mkdir()
    np.save(tmp_path / "stacks" / "a.npy", np.zeros((3, 8, 8), np.uint8))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error, match=words) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_without_permission_is_called_so(tmp_path: Path) -> None:
    fill(tmp_path, "set/1.jpg", "set/closed/2.jpg")
    (tmp_path / "set" / "closed").chmod(0)
    source = open_source(tmp_path / "set")
    assert keys(source) == ["1.jpg"]
    assert "permission" in source.ignored[0].reason
    with pytest.raises(DataError, match="'closed'"):
        open_source(tmp_path / "set", labels=True)
    (tmp_path / "set").chmod(0)
    with pytest.raises(UserError, match="permission"):
        open_source(tmp_path / "set")
    (tmp_path / "set").chmod(0o700)
    (tmp_path / "set" / "closed").chmod(0o700)


def test_one_image_is_a_source_of_one(tmp_path: Path) -> None:
    source = open_source(fill(tmp_path, "one.jpg") / "one.jpg")
    assert keys(source) == ["one.jpg"] and decode(source.read(0), "k").shape == (24, 32, 3)


def test_a_file_that_vanishes_is_missing_when_read(tmp_path: Path) -> None:
    source = open_source(fill(tmp_path, "1.jpg", "2.jpg"))
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(DecodeError) as caught:
        source.read(0)
    assert (caught.value.key, caught.value.reason) == ("1.jpg", "missing")


# --- class folders


def class_folders(root: Path) -> Path:
    fill(root, "cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/deeper/2.jpg", "Dog/3.jpg", "stray.jpg")
    fill(root, "__MACOSX/._1.jpg", ".hidden/1.jpg")
    return root


def test_classes_are_the_folders_right_below(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        source = open_source(class_folders(tmp_path), labels=True)
    assert source.classes == ("Dog", "cat", "dog")
    assert dict(zip(keys(source), labels(source), strict=True)) == {
        "Dog/3.jpg": 0, "cat/1.jpg": 1, "cat/2.jpg": 1, "dog/1.jpg": 2, "dog/deeper/2.jpg": 2,
    }  # fmt: skip
    assert "only by case" in caplog.text
    reasons = {entry.key: entry.reason for entry in source.ignored}
    assert "class" in reasons["stray.jpg"] and {"__MACOSX", ".hidden"} < set(reasons)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "empty_class").mkdir()
    (tmp_path / "empty_class" / ".gitkeep").write_text("")
    with pytest.raises(DataError, match="'empty_class'"):
        open_source(tmp_path, labels=True)
    assert len(open_source(tmp_path)) == 6


def test_labels_of_a_flat_folder_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no class folders"):
        open_source(fill(tmp_path, "1.jpg"), labels=True)


@pytest.mark.skipif(not BESIDE.is_dir(), reason="the larger set of faulty files is not beside the checkout")
def test_the_faulty_class_folders_beside_the_checkout() -> None:
    with pytest.raises(DataError, match="'empty_class'"):
        open_source(BESIDE / "folders", labels=True)
    source = open_source(BESIDE / "folders")
    assert len(source) == 8 and {"__MACOSX", ".hidden"} <= {entry.key for entry in source.ignored}


# --- patterns


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("a{b}c", ["a{b}c"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_expand_as_in_a_shell(pattern: str, paths: list[str]) -> None:
    assert expand_braces(pattern) == paths


def test_a_range_that_runs_backwards_is_a_mistake() -> None:
    with pytest.raises(UserError, match="is no range"):
        expand_braces("a{9..1}.tar")


@pytest.mark.parametrize(
    ("pattern", "name", "wanted"),
    [
        ("**/*.jpg", "a.jpg", True), ("**/*.jpg", "a/b/c.jpg", True), ("*/*.jpg", "a/b/c.jpg", False),
        ("a/**/c?.jpg", "a/b/c1.jpg", True), ("[a-c]*.jpg", "b1.jpg", True), ("[!a]*", "abc", False),
        ("a.b", "axb", False),
    ],
)  # fmt: skip
def test_a_star_stays_within_one_name_and_two_cross_folders(pattern: str, name: str, wanted: bool) -> None:
    assert bool(_regex(pattern).fullmatch(name)) is wanted


def test_globs_find_images_and_name_the_rest(tmp_path: Path) -> None:
    fill(tmp_path, "x/1.jpg", "x/2.PNG", "y/z/3.jpg")
    (tmp_path / "x" / "notes.txt").write_text("")
    (tmp_path / "x" / "loop").symlink_to("..", target_is_directory=True)
    source = open_source(tmp_path / "x" / "*")
    assert keys(source) == ["1.jpg", "2.PNG"] and source.kind == "glob"
    assert {entry.key for entry in source.ignored} == {"notes.txt", "loop"}
    assert keys(open_source(tmp_path / "**" / "*.jpg")) == ["x/1.jpg", "y/z/3.jpg"]
    assert keys(open_source(tmp_path / "{x,y/z}" / "*.jpg")) == ["x/1.jpg", "y/z/3.jpg"]


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    assert len(open_source(fill(tmp_path / "set [2024] {x,y}", "1.jpg"))) == 1


def test_paths_may_be_relative_and_begin_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "set/1.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    digests = {open_source(path).digest() for path in ("set", "./set/", "~/set", tmp_path / "set")}
    assert len(digests) == 1
    assert keys(open_source("s*/*.jpg")) == ["s" + "et/1.jpg"]
