"""Smaller copies: nothing lost, nothing half-written taken for done, the same bytes after any interruption."""

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from mimkit.data.decode import decode, read_header
from mimkit.data.prepare import encode_pixels, prepare_copy, shrunk
from mimkit.data.sources import open_source
from mimkit.errors import UserError


def noise(*shape: int, seed: int = 0, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Pictures of every depth in folders, with names that clash once their extension is gone, and two bad ones."""
    root = tmp_path_factory.mktemp("photos")
    for name in ("cat/big.jpg", "cat/deep/wide.png", "dog/big.png", "dog/big.jpg", "dog/has.dots.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(80, 120, 3, seed=len(name))).save(root / name)
    Image.fromarray(noise(20, 30, 3)).save(root / "dog" / "small.jpg")
    Image.fromarray(noise(20, 30)).save(root / "dog" / "small.webp", lossless=True)
    (root / "cat" / "deep16.png").write_bytes(imagecodecs.png_encode(noise(80, 100, 3, dtype=np.uint16)))
    bands = noise(80, 90, 5, dtype=np.uint16)
    tifffile.imwrite(root / "cat" / "bands.tif", bands, photometric="minisblack", planarconfig="contig")
    (root / "cat" / "cut.jpg").write_bytes((root / "cat" / "big.jpg").read_bytes()[:900])
    (root / "dog" / "empty.png").write_bytes(b"")
    return root


def tree(root: Path) -> dict[str, str]:
    """Every visible file of a folder with a digest of its bytes."""
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)
    }


def test_a_copy_keeps_the_folders_and_shrinks_what_is_too_large(photos, tmp_path):
    report = prepare_copy(open_source(photos), tmp_path / "out", 40, jobs=1)
    copy = open_source(tmp_path / "out")
    keys = [copy.key(i) for i in range(len(copy))]
    assert set(keys) == {
        "cat/bands.tif", "cat/big.jpg", "cat/deep16.png", "cat/deep/wide.jpg",
        "dog/big.jpg", "dog/big~6.jpg", "dog/has.dots.jpg", "dog/small.jpg", "dog/small~10.jpg",
    }  # fmt: skip
    assert (report.written, report.kept) == (9, 0)
    sizes = {key: decode(copy.read(i), key).shape for i, key in enumerate(keys)}
    assert sizes["cat/big.jpg"] == (40, 60, 3) and sizes["dog/small.jpg"] == (20, 30, 3)


def test_unreadable_images_are_left_out_and_listed(photos, tmp_path):
    report = prepare_copy(open_source(photos), tmp_path / "out", 40, jobs=1)
    assert [skip.name for skip in report.skipped] == ["cat/cut.jpg", "dog/empty.png"]
    assert "cat/cut.jpg" in (tmp_path / "out" / "prepare.json").read_text()


def test_deep_and_many_banded_pictures_stay_lossless_and_deep(photos, tmp_path):
    prepare_copy(open_source(photos), tmp_path / "out", 500, jobs=1)
    for name in ("cat/deep16.png", "cat/bands.tif", "dog/small.jpg", "cat/big.jpg"):
        assert (tmp_path / "out" / name).read_bytes() == (
            photos / name
        ).read_bytes()  # small enough: as it was
    prepare_copy(open_source(photos), tmp_path / "less", 40, jobs=1)
    for name, channels in (("cat/deep16.png", 3), ("cat/bands.tif", 5)):
        pixels = decode((tmp_path / "less" / name).read_bytes(), name)
        assert pixels.dtype == np.uint16 and pixels.shape[::2] == (40, channels) and pixels.max() > 40000


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_what_is_written_reads_back_with_its_type_and_channels(dtype, channels):
    pixels = (
        np.random.default_rng(0).random((24, 32, channels)) * (1 if dtype == np.float32 else 250)
    ).astype(dtype)
    suffix, content = encode_pixels(pixels, 95)
    back = decode(content, "x" + suffix)
    assert back.dtype == dtype and back.shape == pixels.shape
    if suffix != ".jpg":
        assert np.array_equal(back, pixels)


def test_the_shorter_side_is_brought_down_and_never_up():
    assert shrunk(1500, 2000, 256) == (256, 341)
    assert shrunk(2000, 1500, 256) == (341, 256)
    assert shrunk(100, 50, 256) == (100, 50) and shrunk(3000, 8, 4) == (1500, 4)


def test_the_quality_asked_for_is_the_one_of_the_files(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(noise(90, 90, 3)).save(tmp_path / "in" / "a.png")
    source = open_source(tmp_path / "in")
    for quality in (30, 95):
        prepare_copy(source, tmp_path / f"q{quality}", 64, jobs=1, quality=quality)
    assert (tmp_path / "q30/a.jpg").stat().st_size < (tmp_path / "q95/a.jpg").stat().st_size / 2


def test_an_orientation_is_applied_when_shrinking_and_kept_when_copied(tmp_path):
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(40, 80, 3)).save(tmp_path / "in" / "turned.jpg", exif=exif)
    for side, shape in ((20, (40, 20, 3)), (100, (80, 40, 3))):
        prepare_copy(open_source(tmp_path / "in"), tmp_path / f"{side}", side, jobs=1)
        assert decode((tmp_path / f"{side}" / "turned.jpg").read_bytes(), "turned").shape == shape


def test_shards_hold_the_images_in_order_under_names_that_webdataset_reads(photos, tmp_path):
    report = prepare_copy(open_source(photos, labels=True), tmp_path / "out", 40, shards=3, jobs=1)
    assert report.written == 9 and len(report.skipped) == 2
    names = []
    for shard in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(shard) as tar:
            names += tar.getnames()
            assert all(member.mtime == 0 and member.uid == 0 for member in tar)
    assert names[:2] == ["cat/bands.tif", "cat/bands.cls"] and "dog/has_dots.jpg" in names
    copy = open_source(tmp_path / "out", labels=True)
    assert len(copy) == 9 and copy.classes == ("cat", "dog") and copy.label(0) == 0 and copy.label(8) == 1


def test_a_table_keeps_its_labels_in_a_table_beside_the_copy(photos, tmp_path):
    (tmp_path / "table.csv").write_text(f"path,label\n{photos}/cat/big.jpg,tabby\n{photos}/dog/big.jpg,pug\n")
    prepare_copy(open_source(tmp_path / "table.csv", labels=True), tmp_path / "out", 40, jobs=1)
    copy = open_source(tmp_path / "out" / "labels.csv", labels=True)
    assert copy.classes == ("pug", "tabby") and [copy.label(i) for i in range(2)] == [1, 0]
    assert all(not Path(copy.key(i)).is_absolute() for i in range(2))
    assert all(read_header(copy.read(i), "x").height == 40 for i in range(2))


def test_names_that_climb_out_of_their_folder_stay_inside_the_copy(photos, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    image = (photos / "dog" / "big.jpg").read_bytes()
    (tmp_path / "a" / "x.jpg").write_bytes(image)
    (tmp_path / "a" / "b" / "list.txt").write_text(f"../x.jpg\n{photos}/cat/big.jpg\n")
    report = prepare_copy(open_source(tmp_path / "a" / "b" / "list.txt"), tmp_path / "out", 40, jobs=1)
    assert report.written == 2 and len(open_source(tmp_path / "out")) == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "out"]


def test_a_file_and_a_folder_of_one_name_do_not_collide(photos, tmp_path):
    (tmp_path / "in" / "x.jpg").mkdir(parents=True)
    for name in ("x.png", "x.jpg/y.jpg"):
        Image.fromarray(noise(60, 60, 3)).save(tmp_path / "in" / name)
    assert prepare_copy(open_source(tmp_path / "in"), tmp_path / "out", 40, jobs=1).written == 2


@pytest.mark.parametrize("shards", [None, 3])
def test_two_processes_write_the_same_bytes_and_a_second_call_finds_all_done(photos, tmp_path, shards):
    source = open_source(photos)
    prepare_copy(source, tmp_path / "one", 40, shards=shards, jobs=1)
    calls: list[tuple[int, int]] = []
    prepare_copy(source, tmp_path / "two", 40, shards=shards, jobs=2, progress=lambda *now: calls.append(now))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert calls == sorted(calls) and calls[-1] == (11, 11)
    before = {file: (tmp_path / "two" / file).stat().st_mtime_ns for file in tree(tmp_path / "two")}
    again = prepare_copy(source, tmp_path / "two", 40, shards=shards, jobs=1)
    assert (again.written, again.kept, len(again.skipped)) == (0, 9, 2)
    after = {file: (tmp_path / "two" / file).stat().st_mtime_ns for file in before}
    assert {file for file in before if before[file] != after[file]} <= {"prepare.json"}


SCRIPT = """
import sys
from mimkit.data.prepare import prepare_copy
from mimkit.data.sources import open_source
source, shards = open_source(sys.argv[1]), int(sys.argv[3]) or None
prepare_copy(source, sys.argv[2], 40, shards=shards, jobs=2, progress=lambda *now: print(*now, flush=True))
"""


@pytest.mark.parametrize("shards", [0, 5])
def test_a_copy_that_was_killed_goes_on_and_ends_with_the_same_bytes(tmp_path, shards):
    (tmp_path / "in").mkdir()
    for i in range(60):
        Image.fromarray(noise(300, 400, 3, seed=i)).save(tmp_path / "in" / f"{i:03}.png", compress_level=0)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "in"), str(tmp_path / "out"), str(shards)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if int(line.split()[0]) >= 25:
                os.killpg(running.pid, signal.SIGKILL)
                break
    (tmp_path / "out" / ".prepare" / "999.part").write_bytes(b"half")
    source = open_source(tmp_path / "in")
    report = prepare_copy(source, tmp_path / "out", 40, shards=shards or None, jobs=1)
    assert report.kept >= 20 and report.kept + report.written == 60
    prepare_copy(source, tmp_path / "whole", 40, shards=shards or None, jobs=1)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not list((tmp_path / "out" / ".prepare").glob("*.part"))


def test_a_full_disk_gives_one_sentence_and_the_next_call_goes_on(photos, tmp_path, monkeypatch):
    write, calls = Path.write_bytes, []

    def fail_at_third(self: Path, content: bytes) -> int:
        calls.append(self)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", fail_at_third)
    with pytest.raises(
        UserError, match=r"^The disk with .*out is full; free some space .* it goes on from here\.$"
    ):
        prepare_copy(open_source(photos), tmp_path / "out", 40, jobs=2)
    report = prepare_copy(open_source(photos), tmp_path / "out", 40, jobs=1)
    assert (report.kept, report.written) == (2, 7)


def test_a_file_that_a_crash_left_empty_is_made_again(photos, tmp_path):
    prepare_copy(open_source(photos), tmp_path / "out", 40, jobs=1)
    (tmp_path / "out" / "cat" / "big.jpg").write_bytes(b"")
    assert prepare_copy(open_source(photos), tmp_path / "out", 40, jobs=1).written == 1


def test_a_folder_that_holds_something_else_or_another_copy_is_refused(photos, tmp_path):
    source = open_source(photos)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(UserError, match="mine holds something else"):
        prepare_copy(source, tmp_path / "mine", 40)
    prepare_copy(source, tmp_path / "out", 40, jobs=1)
    with pytest.raises(UserError, match=r"made otherwise \(short_side was 40, is 64\)"):
        prepare_copy(source, tmp_path / "out", 64)
    with pytest.raises(UserError, match="before its images changed"):
        prepare_copy(open_source(photos / "dog"), tmp_path / "out", 40)
    with pytest.raises(UserError, match="would become part of its own source"):
        prepare_copy(source, photos / "small", 40)
    with pytest.raises(UserError, match="is a file"):
        prepare_copy(source, tmp_path / "mine" / "thesis.txt", 40)
    with pytest.raises(UserError, match="JPEG quality 0"):
        prepare_copy(source, tmp_path / "q", 40, quality=0)


def test_a_stack_of_arrays_becomes_files(tmp_path):
    np.save(tmp_path / "stack.npy", noise(3, 50, 60, 3))
    report = prepare_copy(open_source(tmp_path / "stack.npy"), tmp_path / "out", 25, jobs=1)
    copy = open_source(tmp_path / "out")
    assert report.written == len(copy) == 3
    assert Image.open(io.BytesIO(copy.read(0))).size == (30, 25)
