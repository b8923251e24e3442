"""The index: the same order everywhere, small in memory, kept and cheaply checked."""

import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from data_samples import fill
from hypothesis import given, settings
from hypothesis import strategies as st

from mimkit.data import index
from mimkit.data.formats import folder, tar
from mimkit.data.formats.folder import scan_local
from mimkit.data.index import Ignored, Keys, LeftOut, encode_labels, keep, kept, left_out_words, suffix_of
from mimkit.data.sources import open_source


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=12)))
def test_keys_give_back_every_name_byte_for_byte(names: list[bytes]) -> None:
    keys = Keys.pack(names)
    assert len(keys) == len(names)
    assert [os.fsencode(key) for key in keys] == names
    assert list(pickle.loads(pickle.dumps(keys))) == list(keys)


@pytest.mark.parametrize("i", [-1, 2])
def test_a_key_outside_the_index_is_an_error(i: int) -> None:
    with pytest.raises(IndexError, match="of 2"):
        Keys.pack([b"a", b"b"])[i]


def test_the_digest_tells_order_borders_and_labels_apart() -> None:
    one, zero = np.array([0, 1], np.int32), np.array([0, 0], np.int32)
    digests = [
        Keys.pack([b"ab", b"c"]).digest(),
        Keys.pack([b"a", b"bc"]).digest(),
        Keys.pack([b"c", b"ab"]).digest(),
        Keys.pack([b"ab", b"c"]).digest(("x", "y"), one),
        Keys.pack([b"ab", b"c"]).digest(("x", "y"), zero),
        Keys.pack([b"ab", b"c"]).digest(("y", "x"), one),
    ]
    assert len(set(digests)) == len(digests)
    assert Keys.pack([b"ab", b"c"]).digest() == digests[0]


def test_a_million_keys_cost_tens_of_megabytes() -> None:
    names = [b"class%03d/photo_%07d.jpg" % (i // 1000, i) for i in range(1_000_000)]
    tracemalloc.start()
    keys = Keys.pack(names)
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert keys[999_999] == "class999/photo_0999999.jpg"
    assert size < 40e6 and peak < 150e6  # joining takes 80 bytes a name for a moment


def test_labels_sort_as_numbers_where_all_are_integers_else_as_text() -> None:
    classes, labels = encode_labels(["10", "3", "10"])
    assert classes == ("3", "10") and labels.tolist() == [1, 0, 1]
    classes, labels = encode_labels(["10", "3", "x"])
    assert classes == ("10", "3", "x") and labels.tolist() == [0, 1, 2]


def test_what_is_left_out_is_named_up_to_a_bound_and_counted_beyond() -> None:
    left_out = LeftOut()
    for i in range(index.NAMED + 50):
        left_out.add(f"{i}.xml", "not an image (.xml)")
    left_out.add(b"x\xff", "hidden")
    found = left_out.all()
    assert len(found) == index.NAMED + 2
    assert sum(entry.count for entry in found) == index.NAMED + 51
    assert left_out_words(found) == "1050 not an image (.xml), 1 hidden"
    assert Ignored("0.xml", "not an image (.xml)") == found[0]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [(b"a.JPG", b".jpg"), (b".jpg", b""), (b"a", b""), (b"a.b.png", b".png"), (b"a.", b".")],
)
def test_extensions(name: bytes, suffix: bytes) -> None:
    assert suffix_of(name) == suffix


def test_what_is_kept_comes_back_and_damage_counts_as_nothing(own_cache: Path) -> None:
    assert kept("x") is None
    keep("x", {"n": 2}, [b"a\xff", b"new\nline"])
    found = kept("x")
    assert found is not None and found[0]["n"] == 2 and found[1] == [b"a\xff", b"new\nline"]
    (file,) = (own_cache / "index").iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:10], whole[:-3], b"[]\nx"):
        file.write_bytes(damaged)
        assert kept("x") is None


def test_a_cache_that_cannot_be_written_costs_only_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "file"))
    keep("x", {}, [b"a"])
    assert "could not be kept" in caplog.text


# --- folders


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the index of small folders too, and of such that changed a moment ago."""
    monkeypatch.setattr(folder, "KEEP_FROM", 1)
    monkeypatch.setattr(tar, "KEEP_FROM", 1)
    monkeypatch.setattr(folder, "SETTLED_NS", -(10**12))


def names(root: Path) -> list[str]:
    return [os.fsdecode(name) for name in scan_local(str(root)).images]


def test_the_order_is_by_folder_then_by_name_as_bytes(tmp_path: Path) -> None:
    fill(tmp_path, "b.jpg", "B.jpg", "a/2.jpg", "a/10.jpg", "a b/1.jpg", "a/c/1.jpg", "é.jpg")
    assert names(tmp_path) == ["B.jpg", "b.jpg", "é.jpg", "a/10.jpg", "a/2.jpg", "a/c/1.jpg", "a b/1.jpg"]


def test_the_kept_index_is_used_and_follows_every_change(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "a/1.jpg", "b/1.jpg", "b/deep/2.jpg", "notes.txt")
    before = names(tmp_path)
    listed = []
    whole = folder._list
    monkeypatch.setattr(folder, "_list", lambda path, *rest: listed.append(path) or whole(path, *rest))
    assert names(tmp_path) == before and not listed
    assert [entry.key for entry in open_source(tmp_path).ignored] == ["notes.txt"]
    fill(tmp_path, "b/deep/1.jpg")
    assert names(tmp_path) == ["a/1.jpg", "b/1.jpg", "b/deep/1.jpg", "b/deep/2.jpg"]
    assert [path.removeprefix(os.fsencode(tmp_path)) for path in listed] == [b"/b/deep"]
    (tmp_path / "a" / "1.jpg").unlink()
    (tmp_path / "b" / "deep").rename(tmp_path / "c")
    assert names(tmp_path) == ["b/1.jpg", "c/1.jpg", "c/2.jpg"]


def test_a_folder_that_changed_just_now_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "KEEP_FROM", 1)
    fill(tmp_path, "1.jpg")
    changed = tmp_path.stat().st_mtime_ns
    assert names(tmp_path) == ["1.jpg"]
    fill(tmp_path, "2.jpg")
    os.utime(tmp_path, ns=(changed, changed))  # as if both had happened within one tick of the clock
    assert names(tmp_path) == ["1.jpg", "2.jpg"]


def test_links_to_folders_stay_links_in_the_kept_index(small: None, tmp_path: Path) -> None:
    fill(tmp_path / "data", "a/1.jpg")
    fill(tmp_path / "elsewhere", "2.jpg")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        assert names(tmp_path / "data") == ["a/1.jpg", "b/2.jpg"]
    (tmp_path / "data" / "b").unlink()
    assert names(tmp_path / "data") == ["a/1.jpg"]


def test_small_folders_are_not_kept(tmp_path: Path, own_cache: Path) -> None:
    fill(tmp_path, "1.jpg")
    open_source(tmp_path)
    assert not (own_cache / "index").exists()


def test_progress_counts_up(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg")
    seen: list[int] = []
    open_source(tmp_path, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 3


def test_mutual_links_end(tmp_path: Path) -> None:
    for name in "abcdef":
        fill(tmp_path, f"{name}/{name}.jpg")
    for name in "abcdef":
        for other in "abcdef":
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other, target_is_directory=True)
    assert len(names(tmp_path)) == 6
