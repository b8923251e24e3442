"""Lists, tables, shards and stacks: as people write them, and what is said where they cannot be used."""

import csv
import os
import pickle
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from data_samples import fill, image, keys, labels, write_tar

from mimkit.data.decode import DecodeError, decode
from mimkit.data.formats import arrays, tar
from mimkit.data.sources import open_source
from mimkit.errors import DataError, UserError

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
    write_tar(tmp_path / "s-0.tar", {"1.jpg": image(0), "1.cls": b"4\n", "2.jpg": image(2), "2.cls": b"10"})
    write_tar(tmp_path / "s-1.tar", {"3.jpg": image(1), "3.cls": b"4"})
    wanted = ["s-0.tar/1.jpg", "s-0.tar/2.jpg", "s-1.tar/3.jpg"]
    for path in (tmp_path / "s-{0..1}.tar", tmp_path, tmp_path / "s-*.tar"):
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


def test_a_cut_shard_gives_what_is_whole_and_names_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.jpg": image(0), "2.jpg": image(1)})
    path.write_bytes(path.read_bytes()[: 512 * 2 + len(image(0)) + 512 + 50])
    source = open_source(path)
    assert keys(source) == ["a.tar/1.jpg"] and source.read(0) == image(0)
    assert [(entry.key, entry.reason) for entry in source.ignored] == [
        ("a.tar/2.jpg", "cut off: the shard is truncated")
    ]
    assert caplog.messages == [f"{path} is truncated: 1 image before the cut; copy it anew for the rest."]


@pytest.mark.parametrize("left", [0, 300])  # bytes of the next header
def test_a_shard_cut_between_two_members_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    monkeypatch.setattr(tar, "KEEP_FROM", 1)
    path = write_tar(tmp_path / "a.tar", {"1.jpg": image(0), "2.jpg": image(1)})
    with tarfile.open(path) as opened:
        second = opened.getmembers()[1].offset
    path.write_bytes(path.read_bytes()[: second + left])
    for _ in range(2):  # from the kept index, too
        caplog.clear()
        source = open_source(path)
        assert keys(source) == ["a.tar/1.jpg"] and source.read(0) == image(0)
        (message,) = caplog.messages
        assert message.startswith(f"{path} does not end as tars do, with blocks of zeros: 1 image found")


def test_whole_shards_of_every_writer_bring_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1.jpg").write_bytes(image(0))
    for mode in ("w", "w|"):  # webdataset writes streams
        with tarfile.open(tmp_path / "a.tar", mode) as opened:
            opened.add(tmp_path / "1.jpg", "1.jpg")
        assert keys(open_source(tmp_path / "a.tar")) == ["a.tar/1.jpg"]
    if shutil.which("tar"):
        subprocess.run(["tar", "-cf", "b.tar", "1.jpg"], cwd=tmp_path, check=True)
        assert keys(open_source(tmp_path / "b.tar")) == ["b.tar/1.jpg"]
    assert not caplog.messages


def test_what_lies_beside_shards_is_told_of(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.jpg": image(0)})
    (tmp_path / "b.tar.gz").write_bytes(b"packed")
    (tmp_path / "index.json").write_text("{}")
    source = open_source(tmp_path)
    assert keys(source) == ["a.tar/1.jpg"]
    assert [entry.key for entry in source.ignored] == ["b.tar.gz", "index.json"]


def test_a_shard_that_shrinks_later_gives_an_error_of_that_image(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.jpg": image(0), "2.jpg": image(1)})
    source = open_source(path)
    os.truncate(path, 512 * 4)
    with pytest.raises(DecodeError, match="truncated"):
        source.read(1)


def test_a_member_without_label_is_named_when_labels_are_asked_for(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.jpg": image(0), "1.cls": b"0", "2.jpg": image(1)})
    with pytest.raises(UserError, match=r"no \.cls member beside 1 of 2 images.*2\.jpg"):
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
