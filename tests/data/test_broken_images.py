"""Every faulty image that a real folder holds: read, left out by the scan, or refused with a reason; never worse."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import BESIDE, BROKEN, broken_rows, fill

from mimkit.data.decode import DecodeError, decode, read_header
from mimkit.data.sources import open_source

ROWS = broken_rows()
PLACES = [BROKEN, *([BESIDE / "images"] if BESIDE.is_dir() else [])]
LEFT_OUT = {"._good.jpg", "Thumbs.db", "notes.txt", "no_extension"}


@pytest.mark.parametrize(("folder", "row"), ROWS)
def test_a_file_is_read_or_refused_as_the_manifest_says(folder: Path, row: dict[str, Any]) -> None:
    data = (folder / row["path"]).read_bytes()
    if row["action"] != "read":
        with pytest.raises(DecodeError) as caught:
            decode(data, row["path"], channels=3)
        assert caught.value.key == row["path"]
        assert 0 < len(caught.value.reason) < 100
        return
    pixels = decode(data, row["path"], channels=3)
    width, height = row.get("upright", row.get("size", (96, 72)))
    assert pixels.shape == (height, width, 3)
    assert pixels.dtype in (np.uint8, np.uint16)
    assert pixels.flags.c_contiguous and pixels.flags.writeable


@pytest.mark.parametrize(("folder", "row"), [row for row in ROWS if "size" in row.values[1]])
def test_the_header_tells_size_frames_and_bands(folder: Path, row: dict[str, Any]) -> None:
    header = read_header((folder / row["path"]).read_bytes(), row["path"])
    assert [header.width, header.height] == list(row["size"])
    assert header.frames == row.get("frames", 1)
    assert header.upright == tuple(reversed(row.get("upright", row["size"])))
    assert header.channels == row.get("bands", header.channels)


@pytest.mark.parametrize("folder", PLACES, ids=lambda folder: folder.parent.name)
def test_a_scan_finds_every_image_under_its_own_name_and_names_the_rest(folder: Path) -> None:
    source = open_source(folder)
    wanted = {row.values[1]["path"] for row in ROWS if row.values[0] == folder} - LEFT_OUT
    assert {source.key(i) for i in range(len(source))} == wanted
    assert {entry.key for entry in source.ignored} >= LEFT_OUT
    assert all(entry.reason for entry in source.ignored)


@pytest.mark.parametrize("folder", PLACES, ids=lambda folder: folder.parent.name)
def test_no_file_prints_or_warns(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = open_source(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(len(source)):
            try:
                decode(source.read(i), source.key(i), channels=3)
            except DecodeError:
                continue
    assert capfd.readouterr() == ("", "")


def load(folder: Path, name: str, **options: Any) -> np.ndarray:
    return decode((folder / name).read_bytes(), name, **options)


def reason(folder: Path, name: str, **options: Any) -> str:
    with pytest.raises(DecodeError) as caught:
        load(folder, name, **options)
    return caught.value.reason


@pytest.mark.parametrize("folder", PLACES, ids=lambda folder: folder.parent.name)
class TestTheImportantOnes:
    def test_all_orientations_show_the_same_picture_upright(self, folder: Path) -> None:
        first = load(folder, "exif_1.jpg").astype(int)
        for orientation in range(2, 9):
            turned = load(folder, f"exif_{orientation}.jpg").astype(int)
            assert np.abs(turned - first).mean() < 4, orientation

    def test_orientation_holds_for_scaled_decoding_too(self, folder: Path) -> None:
        first = load(folder, "exif_1.jpg", min_size=(36, 48)).astype(int)
        assert first.shape == (36, 48, 3)
        for orientation in range(2, 9):
            turned = load(folder, f"exif_{orientation}.jpg", min_size=(36, 48)).astype(int)
            assert turned.shape == (36, 48, 3)
            assert np.abs(turned - first).mean() < 4, orientation

    def test_cut_files_are_called_truncated(self, folder: Path) -> None:
        for name in ("truncated.jpg", "truncated_tail.jpg", "truncated.png", "only_header.jpg"):
            assert reason(folder, name) == "truncated", name

    def test_a_wrong_checksum_is_damage(self, folder: Path) -> None:
        assert reason(folder, "bad_checksum.png").startswith("damaged")

    def test_what_is_no_image_is_called_so(self, folder: Path) -> None:
        assert reason(folder, "zero_bytes.jpg") == "empty file"
        for name in ("text.jpg", "random.jpg", "notes.txt", "Thumbs.db"):
            assert "not an image" in reason(folder, name)

    def test_bombs_are_refused_by_their_declared_size_without_memory(self, folder: Path) -> None:
        resource = pytest.importorskip("resource")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert "60000 x 60000 pixels" in reason(folder, "bomb_60000.png")
        assert "65500 x 65500 pixels" in reason(folder, "bomb_65500.jpg")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown * (1 if sys.platform == "darwin" else 1024) < 50e6

    def test_ink_is_not_inverted(self, folder: Path) -> None:
        difference = load(folder, "cmyk.jpg").mean((0, 1)) - load(folder, "good.jpg").mean((0, 1))
        assert np.abs(difference).max() < 3

    def test_sixteen_bits_stay_sixteen(self, folder: Path) -> None:
        for name in ("grey16.png", "grey16.tif", "grey16_dark.png", "rgb16.png"):
            pixels = load(folder, name, channels=3)
            assert pixels.dtype == np.uint16
            assert len(np.unique(pixels)) > 50
        eight = load(folder, "good.jpg", channels=1).astype(float)
        assert np.abs(load(folder, "grey16.png").astype(float) / 257 - eight).mean() < 4
        assert load(folder, "grey16_dark.png").max() < 4096

    def test_one_bit_is_black_and_white(self, folder: Path) -> None:
        assert set(np.unique(load(folder, "one_bit.png"))) == {0, 255}

    def test_transparency_lies_on_white(self, folder: Path) -> None:
        for name in ("rgba.png", "grey_alpha.png"):
            assert (load(folder, name, channels=3)[:, 0] == 255).all()
            assert load(folder, name, channels=3)[:, -1].std() > 5
        assert (load(folder, "palette_transparent.png") == 255).all(-1).any()

    def test_damage_that_a_decoder_can_read_over_is_read(self, folder: Path) -> None:
        good = load(folder, "good.jpg")
        assert (load(folder, "icc_corrupt.jpg") == good).all()
        assert np.abs(load(folder, "exif_broken.jpg").astype(int) - good).max() <= 2
        assert (load(folder, "flipped_bytes.jpg")[:16] == good[:16]).mean() > 0.9

    def test_nan_is_named(self, folder: Path) -> None:
        assert "NaN" in reason(folder, "float_nan.tif")

    def test_five_bands_are_five_or_an_error(self, folder: Path) -> None:
        for channels in (None, 5):
            pixels = load(folder, "five_bands_uint16.tif", channels=channels)
            assert pixels.shape == (36, 48, 5) and pixels.dtype == np.uint16
        assert "5 bands" in reason(folder, "five_bands_uint16.tif", channels=3)

    def test_an_animation_gives_its_first_frame(self, folder: Path) -> None:
        assert load(folder, "animated.gif").shape == (36, 48, 3)
        assert load(folder, "pages.tif").shape == (36, 48, 3)


NAMES = (
    "with space.jpg", "naïve café.jpg", "图像 一.jpg", "имя.jpg", "comma, name.jpg", "-dash.jpg", "percent%20sign.jpg",
    "two.dots.in.name.jpg", "#hash.jpg", "e\u0301.jpg", "new\nline.jpg", "x" * 200 + ".jpg", "bytes_\udcff.jpg",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("address", ["{}", "file://{}"])
def test_a_file_is_read_under_this_very_name(name: str, address: str, tmp_path: Path) -> None:
    try:
        fill(tmp_path, name)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes no such name")
    source = open_source(address.format(tmp_path))
    assert source.key(0) == name
    assert decode(source.read(0), name).shape == (24, 32, 3)
    message = str(DecodeError(name, "truncated"))
    assert message.encode() and "\n" not in message  # it can be printed, on one line


def test_links_pipes_and_permissions_never_hang_a_scan_and_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "real.jpg", "sub/a.jpg", "unreadable.jpg")
    (tmp_path / "link.jpg").symlink_to("real.jpg")
    (tmp_path / "loop").symlink_to(".", target_is_directory=True)
    (tmp_path / "sub" / "up").symlink_to("..", target_is_directory=True)
    (tmp_path / "again").symlink_to("sub", target_is_directory=True)
    (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "unreadable.jpg").chmod(0)
    os.mkfifo(tmp_path / "pipe.jpg")
    source = open_source(tmp_path)
    assert [source.key(i) for i in range(len(source))] == [
        "link.jpg",
        "real.jpg",
        "unreadable.jpg",
        "sub/a.jpg",
    ]
    reasons = {entry.key: entry.reason for entry in source.ignored}
    assert set(reasons) == {"dangling.jpg", "self.jpg", "pipe.jpg", "loop", "again", "sub/up"}
    assert (
        "link" in reasons["dangling.jpg"] and "pipe" in reasons["pipe.jpg"] and "already" in reasons["loop"]
    )
    assert source.read(0) == source.read(1)
    if os.geteuid():  # the superuser reads everything
        with pytest.raises(DecodeError, match="permission"):
            source.read(2)


def test_what_a_list_names_wrongly_is_refused_at_reading_and_never_waits(tmp_path: Path) -> None:
    fill(tmp_path, "good.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "folder.jpg").mkdir()
    names = ["good.jpg", "pipe.jpg", "missing.jpg", "self.jpg", "folder.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    source = open_source(tmp_path / "list.txt")
    assert source.read(0)
    reasons = []
    for i in range(1, 5):
        with pytest.raises(DecodeError) as caught:
            source.read(i)
        reasons.append(caught.value.reason)
    assert "pipe" in reasons[0] and reasons[1] == "missing" and "folder" in reasons[3]
