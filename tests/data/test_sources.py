"""Whatever holds images opens with one call, gives the same bytes by number, and says in one sentence what is wrong."""

import csv
import io
import logging
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from data_samples import BESIDE, encoded, fill, picture

from mimkit.data.decode import DecodeError, decode
from mimkit.data.formats import arrays, tar
from mimkit.data.formats.pattern import _regex, expand_braces
from mimkit.data.sources import Source, open_source
from mimkit.errors import DataError, UserError


def keys(source: Source) -> list[str]:
    return [source.key(i) for i in range(len(source))]


def labels(source: Source) -> list[int | None]:
    return [source.label(i) for i in range(len(source))]


def write_tar(path: Path, members: dict[str, bytes], **options: object) -> Path:
    with tarfile.open(path, "w", **options) as file:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def image(seed: int) -> bytes:
    return encoded(picture(seed=seed))


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


# --- lists and tables


def test_a_list_may_hold_any_name(tmp_path: Path) -> None:
    fill(tmp_path, "#hash.jpg", "with space.jpg", "new\nline.jpg", "bytes_\udcff.jpg", "no_extension")
    names = [b"#hash.jpg", b"# a comment", b"with space.jpg", b"bytes_\xff.jpg", b"no_extension"]
    (tmp_path / "lines.txt").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(names))
    assert keys(open_source(tmp_path / "lines.txt")) == [os.fsdecode(names[i]) for i in (0, 2, 3, 4)]
    (tmp_path / "nul.txt").write_bytes(b"new\nline.jpg\0#hash.jpg\0")
    source = open_source(tmp_path / "nul.txt")
    assert keys(source) == ["new\nline.jpg", "#hash.jpg"] and source.read(0)
    (tmp_path / "windows.txt").write_text("with space.jpg\n", encoding="utf-16")
    assert keys(open_source(tmp_path / "windows.txt")) == ["with space.jpg"]


def test_a_list_with_a_few_missing_files_opens_and_they_are_named_when_read(tmp_path: Path) -> None:
    fill(tmp_path, "1.jpg")
    (tmp_path / "list.txt").write_text("gone.jpg\n1.jpg\n")
    source = open_source(tmp_path / "list.txt")
    with pytest.raises(DecodeError, match=r"'gone\.jpg' .*missing"):
        source.read(0)
    assert source.read(1)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("file,label\n1.jpg,fish\n2.jpg,bird\n", ("bird", "fish")),
        ("\ufefffile,label\r\n1.jpg,fish\r\n", ("fish",)),
        ("file,label\n 1.jpg , fish \n", ("fish",)),
        ('file,label\n"comma, name.jpg",fish\n', ("fish",)),
        ("file,label\n1.jpg,3\n2.jpg,10\n", ("3", "10")),
        ("other,Image,Class\nx,1.jpg,a\n\n", ("a",)),
    ],
)
def test_tables_as_people_write_them(text: str, wanted: tuple[str, ...], tmp_path: Path) -> None:
    fill(tmp_path, "1.jpg", "2.jpg", "comma, name.jpg")
    (tmp_path / "t.csv").write_bytes(text.encode())
    source = open_source(tmp_path / "t.csv", labels=True)
    assert source.classes == wanted and all(source.read(i) for i in range(len(source)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("file,label\n", "no rows"),
        ("1.jpg,fish\n2.jpg,bird\n", "no column for a path: its header reads '1.jpg', 'fish'"),
        ("path;class\n1.jpg;fish\n", "'path;class'.*parted by commas"),
        ("file\n1.jpg\n", "no column for a label"),
        ("file,label\n1.jpg,\n", "line 2 has no label"),
        ("file,label\n,fish\n", "line 2 has no path"),
        ("file,label\n1.jpg,fish\ncomma, name.jpg,fish\n", "line 3 has 3 columns.*quotes"),
        ("file,label\n1.jpg,fish\n1.jpg,bird\n", "two labels, 'fish' and 'bird'"),
        ('file,label\n"1.jpg,fish\n', "line 2 is not CSV"),
        ("file,label\nx.jpg,fish\n", "none that was looked for is there"),
    ],
)
def test_tables_that_cannot_be_used_say_where(text: str, words: str, tmp_path: Path) -> None:
    fill(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        open_source(tmp_path / "t.csv", labels=True)


def test_a_table_in_another_encoding_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("file,label\n1.jpg,añadida\n".encode("latin-1"))
    with pytest.raises(DataError, match="not in UTF-8"):
        open_source(tmp_path / "t.csv")


def test_parquet_reads_as_csv_does(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    fill(tmp_path, "1.jpg", "2.jpg")
    parquet.write_table(
        pa.table({"path": ["1.jpg", "2.jpg"], "label": [10, 9], "x": [b"", b""]}), tmp_path / "t.parquet"
    )
    source = open_source(tmp_path / "t.parquet", labels=True)
    assert keys(source) == ["1.jpg", "2.jpg"] and source.classes == ("9", "10") and labels(source) == [1, 0]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], ["1.jpg", 10], ["2.jpg", 9]])
    assert open_source(tmp_path / "t.csv", labels=True).digest() == source.digest()
    parquet.write_table(pa.table({"path": [None, "2.jpg"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="line 1 has no path"):
        open_source(tmp_path / "t.parquet")
    parquet.write_table(pa.table({"image": [{"bytes": b"x"}]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="holds dict"):
        open_source(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="as parquet"):
        open_source(tmp_path / "t.parquet")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"mimkit\[tables\]"):
        open_source(tmp_path / "t.parquet")


# --- shards


def test_one_shard_a_pattern_and_a_folder_of_shards_agree(tmp_path: Path) -> None:
    pattern = tar_case(tmp_path)
    wanted = ["s-0.tar/1.jpg", "s-0.tar/2.png", "s-1.tar/3.jpg"]
    for path in (pattern, tmp_path, tmp_path / "s-*.tar"):
        source = open_source(path, labels=True)
        assert keys(source) == wanted and source.kind == "tar"
        assert source.classes == ("4", "10") and labels(source) == [0, 1, 0]
        assert [source.read(i) for i in (2, 0)] == [image(1), image(0)]
    assert keys(open_source(tmp_path / "s-1.tar")) == wanted[2:]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_odd_member_names(form: int, tmp_path: Path) -> None:
    names = ["deep/" * 15 + "x.jpg", "ünï.jpg"] + (
        [] if form == tarfile.USTAR_FORMAT else ["y" * 200 + ".jpg"]
    )
    path = write_tar(tmp_path / "a.tar", {name: image(i) for i, name in enumerate(names)}, format=form)
    source = open_source(path)
    assert keys(source) == [f"a.tar/{name}" for name in names]
    assert [source.read(i) for i in range(len(names))] == [image(i) for i in range(len(names))]


def test_the_index_of_a_shard_is_kept_until_the_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar, "KEEP_FROM", 1)
    path = write_tar(tmp_path / "a.tar", {"1.jpg": image(0), "1.cls": b"cat", "notes.txt": b"x"})
    first = open_source(path, labels=True)
    walked = []
    whole = tar._index
    monkeypatch.setattr(tar, "_index", lambda *args: walked.append(1) or whole(*args))
    again = open_source(path, labels=True)
    assert not walked and again.digest() == first.digest() and again.read(0) == image(0)
    assert again.ignored == first.ignored and again.ignored[0].key == "a.tar/notes.txt"
    write_tar(path, {"2.jpg": image(1), "2.cls": b"cat"})
    changed = open_source(path, labels=True)
    assert walked and keys(changed) == ["a.tar/2.jpg"] and changed.read(0) == image(1)


def test_a_cut_shard_gives_what_is_whole_and_names_the_rest(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.jpg": image(0), "2.jpg": image(1)})
    path.write_bytes(path.read_bytes()[: 512 * 2 + len(image(0)) + 512 + 50])
    source = open_source(path)
    assert keys(source) == ["a.tar/1.jpg"] and source.read(0) == image(0)
    assert any("truncated" in entry.reason for entry in source.ignored)


def test_a_shard_that_shrinks_later_gives_an_error_of_that_image(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.jpg": image(0), "2.jpg": image(1)})
    source = open_source(path)
    os.truncate(path, 512 * 4)
    with pytest.raises(DecodeError, match="truncated"):
        source.read(1)


def test_a_member_without_label_is_named_when_labels_are_asked_for(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.jpg": image(0), "1.cls": b"0", "2.jpg": image(1)})
    with pytest.raises(UserError, match=r"1 of 2 images have no \.cls.*2\.jpg"):
        open_source(path, labels=True)


def test_a_shard_beside_images_is_reported_not_read(tmp_path: Path) -> None:
    fill(tmp_path, "1.jpg")
    write_tar(tmp_path / "a.tar", {"1.jpg": image(0)})
    source = open_source(tmp_path)
    assert keys(source) == ["1.jpg"] and source.ignored[0].key == "a.tar"


# --- stacks


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((5, 8, 9), (8, 9, 1)), ((5, 8, 9, 3), (8, 9, 3)), ((5, 3, 8, 9), (8, 9, 3)), ((5, 13, 20, 20), (20, 20, 13)),
        ((5, 8, 8, 8), (8, 8, 8)), ((5, 1, 8, 9), (8, 9, 1)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["c", "fortran", "npz", "npz_compressed"])
def test_the_smaller_of_the_second_and_the_last_axis_holds_the_channels(
    shape: tuple[int, ...], wanted: tuple[int, ...], form: str, tmp_path: Path
) -> None:
    stack = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    path = tmp_path / ("a.npz" if "npz" in form else "a.npy")
    if form == "npz_compressed":
        np.savez_compressed(path, images=stack)
    elif form == "npz":
        np.savez(path, images=stack)
    else:
        np.save(path, np.asfortranarray(stack) if form == "fortran" else stack)
    source = open_source(path)
    assert len(source) == 5 and source.key(4) == f"{path.name}[4]"
    found = decode(source.read(4), "k")
    assert found.shape == wanted and found.dtype == np.uint16
    last = stack[4] if stack.ndim == 4 else stack[4][..., None]
    assert (found == (last.transpose(1, 2, 0) if last.shape != wanted else last)).all()


def test_an_npz_may_hold_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 8, 8), np.uint8), y=np.array([7, 2, 7]))
    source = open_source(tmp_path / "a.npz", labels=True)
    assert source.classes == ("2", "7") and labels(source) == [1, 0, 1]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": np.zeros((3, 8, 8)), "b": np.zeros((3, 8, 8))}, r"a \(3, 8, 8\), b \(3, 8, 8\)"),
        ({"a": np.zeros(3)}, r"holds a \(3,\)"),
        ({"a": np.zeros((8, 9, 3))}, "single picture"),
        ({"a": np.zeros((0, 8, 8))}, "holds no images"),
        ({"a": np.zeros((2, 8, 8), complex)}, "complex"),
        ({"a": np.full((2, 8, 8), None)}, "object"),
    ],
)
def test_stacks_that_are_none_say_what_was_found(
    arrays: dict[str, np.ndarray], words: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=words):
        open_source(tmp_path / "a.npz")


def test_a_cut_or_foreign_stack_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((9, 8, 8), np.uint8))
    os.truncate(tmp_path / "a.npy", 300)
    with pytest.raises(DataError, match="truncated: 300 bytes"):
        open_source(tmp_path / "a.npy")
    for name in ("b.npy", "b.npz"):
        (tmp_path / name).write_text("hello")
        with pytest.raises(DataError, match="NumPy file"):
            open_source(tmp_path / name)


def test_a_pickled_array_is_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}, None, 3]).reshape(1, 3, 1), allow_pickle=True)
    with pytest.raises(DataError, match="object"):
        open_source(tmp_path / "a.npy")


def test_a_large_compressed_stack_is_worth_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(arrays, "LARGE", 10)
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((3, 8, 8), np.uint8))
    source = open_source(tmp_path / "a.npz")
    assert "compressed" in caplog.text
    assert source.read(0) is not None
    assert len(pickle.dumps(source)) < 2000  # the loaded stack does not travel to the workers
