"""Pixels come out upright, at their stored depth, with as many channels as asked, or as an error with a reason."""

import io
import pickle
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tifffile
from data_samples import encoded, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mimkit.data import decode as module
from mimkit.data.decode import DecodeError, Header, decode, read_header
from mimkit.errors import DataError

RGB = picture(40, 60)


def tiff(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(array: np.ndarray, colour: int, bits: int, extra: bytes = b"") -> bytes:
    """A PNG of rows (H, values) as they are stored, with chunks of our own before the pixels."""
    width = array.shape[1] * array.itemsize * 8 // bits // {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(array), bits, colour, 0, 0, 0))
    rows = b"".join(b"\0" + row.tobytes() for row in array)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + extra + body


def reason(data: bytes | np.ndarray, **options: Any) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data, "a.jpg", **options)
    return caught.value.reason


# --- errors


def test_an_error_names_the_file_and_survives_the_way_out_of_a_worker() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("a b.jpg", "truncated")))
    assert (error.key, error.reason) == ("a b.jpg", "truncated")
    assert "a b.jpg" in str(error) and isinstance(error, DataError) and error.exit_code == 3


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damage_brings_out_anything_but_a_decode_error(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(WHOLE))
    broken = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=6)):
        broken[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        pixels = decode(bytes(broken[:cut]), "k", channels=3, max_pixels=1_000_000)
    except DecodeError:
        return
    assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype in (np.uint8, np.uint16, np.float32)


@pytest.mark.parametrize("length", [1, 2, 3, 10, 100])
def test_a_jpeg_that_lacks_its_end_is_never_silently_grey(length: int) -> None:
    whole = encoded(RGB)
    assert reason(whole[:-length]) == "truncated"
    assert reason(whole[: -length - 2] + b"\xff\xd9") == "truncated" or length < 3


def test_bytes_behind_the_end_do_no_harm() -> None:
    whole = encoded(RGB)
    for more in (bytes(10), b"hello", whole):
        assert (decode(whole + more, "k") == decode(whole, "k")).all()


def test_running_out_of_memory_is_an_error_of_this_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(module.simplejpeg, "decode_jpeg", fail)
    assert "memory" in reason(encoded(RGB))


def test_the_limit_counts_pixels_and_many_bands() -> None:
    assert "40 x 40 pixels" in reason(encoded(picture(40, 40)), max_pixels=1599)
    assert decode(encoded(picture(40, 40)), "k", max_pixels=1600).shape == (40, 40, 3)
    bands = tiff(np.zeros((8, 8, 20), np.float32), photometric="minisblack", planarconfig="contig")
    assert "20 channels of 32 bits" in reason(bands, max_pixels=64)


def test_a_picture_without_pixels_is_refused() -> None:
    data = bytearray(encoded(RGB))
    frame = data.find(b"\xff\xc0") + 5
    data[frame : frame + 2] = b"\0\0"
    assert "60 x 0 pixels" in reason(bytes(data))


# --- channels


def test_grey_is_repeated_and_colour_becomes_luminance() -> None:
    grey = encoded(RGB[..., :1], "PNG")
    assert (decode(grey, "k", 3) == RGB[..., :1]).all()
    assert (decode(grey, "k") == RGB[..., :1]).all()
    for kind, tolerance in (("PNG", 1), ("JPEG", 4)):  # of a JPEG the stored luminance is taken
        data = encoded(RGB, kind)
        wanted = np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=int)[..., None]
        assert np.abs(decode(data, "k", 1).astype(int) - wanted).max() <= tolerance
    assert decode(encoded(RGB[..., 0]), "k").shape == (40, 60, 1)


def test_other_counts_must_be_the_stored_ones() -> None:
    assert reason(encoded(RGB), channels=5) == "has 3 bands, where 5 are wanted"
    assert reason(encoded(RGB[..., 0], "PNG"), channels=4) == "has 1 band, where 4 are wanted"
    seven = tiff(np.zeros((8, 9, 7), np.uint8), photometric="minisblack", planarconfig="contig")
    assert reason(seven, channels=3) == "has 7 bands, where 3 are wanted"
    assert decode(seven, "k", 7).shape == (8, 9, 7)


def test_four_channels_asked_for_are_given_as_stored() -> None:
    clear = np.concatenate([RGB, np.full((40, 60, 1), 77, np.uint8)], 2)
    assert (decode(encoded(clear, "PNG"), "k", 4) == clear).all()
    near_infrared = tiff(clear, photometric="rgb", extrasamples=["unspecified"])
    assert (decode(near_infrared, "k", 4) == clear).all()
    assert (decode(near_infrared, "k") == clear).all()  # a fourth band that is not said to be alpha is a band
    assert "4 bands" in reason(near_infrared, channels=3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparency_is_composited_on_white_exactly(dtype: type) -> None:
    top = np.iinfo(dtype).max
    rng = np.random.default_rng(0)
    clear = rng.integers(0, top, (6, 7, 4), dtype, endpoint=True)
    clear[0, 0, 3], clear[0, 1, 3] = 0, top
    alpha = clear[..., 3:].astype(float) / top
    wanted = np.rint(clear[..., :3] * alpha + top * (1 - alpha))
    got = decode(tiff(clear, photometric="rgb", extrasamples=["unassalpha"]), "k", 3)
    assert got.dtype == dtype and np.abs(got - wanted).max() <= 1
    multiplied = np.rint(clear * np.concatenate([alpha] * 3 + [np.ones_like(alpha)], 2)).astype(dtype)
    got = decode(tiff(multiplied, photometric="rgb", extrasamples=["assocalpha"]), "k", 3)
    assert np.abs(got - wanted).max() <= 1


def test_a_transparent_colour_of_a_png_counts_as_transparency() -> None:
    grey = np.array([[3, 200]], np.uint8)
    assert decode(png(grey, 0, 8, chunk(b"tRNS", b"\0\3")), "k", 3)[0].tolist() == [[255] * 3, [200] * 3]


def test_palettes_are_applied() -> None:
    indices = np.array([[0, 1, 2]], np.uint8)
    data = png(indices, 3, 8, chunk(b"PLTE", bytes([1, 2, 3, 40, 50, 60, 7, 8, 9])))
    assert decode(data, "k").tolist() == [[[1, 2, 3], [40, 50, 60], [7, 8, 9]]]
    image = Image.fromarray(RGB).quantize(16)
    file = io.BytesIO()
    image.save(file, "TIFF")
    assert (decode(file.getvalue(), "k") == np.asarray(image.convert("RGB"))).all()


# --- depth


@pytest.mark.parametrize("order", "<>")
def test_sixteen_bits_stay_in_either_byte_order(order: str) -> None:
    deep = RGB.astype(np.uint16) * 257
    for found in (decode(deep.astype(f"{order}u2"), "k"), decode(tiff(deep, byteorder=order), "k")):
        assert found.dtype == np.uint16 and np.array_equal(found, deep)


def test_depth_and_values_stay() -> None:
    deep = (RGB[..., :1].astype(np.uint16) << 8) + 5
    assert (decode(encoded(deep, "PNG"), "k") == deep).all()
    deep3 = RGB.astype(np.uint16) * 257
    assert (decode(png(deep3.astype(">u2").reshape(40, -1), 2, 16), "k") == deep3).all()
    for options in (
        {},
        {"compression": "zlib"},
        {"compression": "lzw"},
        {"tile": (16, 16)},
        {"byteorder": ">"},
    ):
        found = decode(tiff(deep3, photometric="rgb", **options), "k")
        assert found.dtype == np.dtype("=u2") and found.dtype.isnative and (found == deep3).all(), options
    maximum = b"P5 3 1 65535\n" + np.array([0, 1, 65535], ">u2").tobytes()
    assert decode(maximum, "k").ravel().tolist() == [0, 1, 65535]


def test_floats_and_wider_integers_become_float32_with_their_values() -> None:
    for dtype in (np.float16, np.float32, np.float64, np.int16, np.int32):
        values = np.array([[-3, 0, 1000.0]]).astype(dtype)
        found = decode(tiff(values), "k")
        assert found.dtype == np.float32 and found.ravel().tolist() == [-3, 0, 1000]


def test_infinite_values_are_named_too() -> None:
    assert "infinite" in reason(tiff(np.array([[1.0, np.inf]], np.float32)))
    assert "infinite" in reason(np.array([[1e300]]))
    assert "NaN" in reason(np.full((2, 2), np.nan, np.float16))


def test_few_bits_fill_the_range_and_white_is_zero_is_turned_round() -> None:
    bits = RGB[..., 0] > 128
    assert (decode(tiff(bits, photometric="minisblack"), "k")[..., 0] == bits * 255).all()
    assert (decode(tiff(bits, photometric="miniswhite"), "k")[..., 0] == ~bits * np.uint8(255)).all()
    for photometric, wanted in (("minisblack", [0, 255]), ("miniswhite", [255, 0])):
        found = decode(tiff(np.array([[0, 255]], np.uint8), photometric=photometric), "k")
        assert found.ravel().tolist() == wanted
    two = np.array([[0b00011011]], np.uint8)
    assert decode(png(two, 0, 2), "k").ravel().tolist() == [0, 85, 170, 255]


def test_bands_may_lie_in_planes() -> None:
    planes = np.arange(5 * 6 * 7, dtype=np.uint16).reshape(5, 6, 7)
    found = decode(tiff(planes, photometric="minisblack", planarconfig="separate"), "k")
    assert (found == planes.transpose(1, 2, 0)).all() and found.flags.c_contiguous


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr"])
def test_inks_and_other_colours_in_tiff_become_rgb(mode: str) -> None:
    file = io.BytesIO()
    Image.fromarray(RGB).convert(mode).save(file, "TIFF")
    assert np.abs(decode(file.getvalue(), "k", 3).astype(int) - RGB).mean() < 8


def test_arrays_pass_through_the_same_rules() -> None:
    assert (decode(RGB, "k", 3) == RGB).all()
    assert decode(RGB[..., 0], "k", 3).shape == (40, 60, 3)
    assert decode(RGB > 128, "k").max() == 255
    assert decode(RGB.astype(">u2"), "k").dtype.isnative
    frozen = RGB.copy()
    frozen.flags.writeable = False
    assert decode(frozen, "k").flags.writeable
    assert "complex" in reason(RGB.astype(complex))
    assert "shape (2, 3, 4, 5)" in reason(np.zeros((2, 3, 4, 5), np.uint8))
    assert "shape (0, 3, 4)" in reason(np.zeros((0, 3, 4), np.uint8))


# --- orientation


def turned(kind: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "TIFF":
        return encoded(RGB, kind, tiffinfo={0x0112: orientation}, **options)
    return encoded(RGB, kind, exif=exif.tobytes(), **options)


UPRIGHT = {
    1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2),
    6: np.rot90(RGB, -1), 7: np.rot90(RGB[::-1, ::-1].transpose(1, 0, 2), 0), 8: np.rot90(RGB, 1),
}  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_every_format_is_turned_upright(kind: str, options: dict[str, Any], orientation: int) -> None:
    data = turned(kind, orientation, **options)
    assert read_header(data, "k").orientation == orientation
    assert (decode(data, "k") == UPRIGHT[orientation]).all()


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("mode", ["CMYK", "P"])
def test_what_pillow_turns_itself_is_not_turned_twice(mode: str, orientation: int) -> None:
    file = io.BytesIO()
    image = Image.fromarray(RGB).convert(mode)
    image.save(file, "TIFF", tiffinfo={0x0112: orientation})
    stored = np.asarray(image.convert("RGB"))
    wanted = np.rot90(stored, -1) if orientation == 6 else stored[::-1, ::-1]
    assert (decode(file.getvalue(), "k") == wanted).all()


def test_the_orientation_may_be_written_big_endian_or_long_and_nonsense_counts_as_none() -> None:
    def exif(order: str, kind: int, value: int) -> bytes:
        mark = b"II*\0" if order == "<" else b"MM\0*"
        cell = struct.pack(order + ("H2x" if kind == 3 else "I"), value)
        return mark + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, 1) + cell

    for order, kind, value, wanted in (
        ("<", 3, 6, 6),
        (">", 3, 6, 6),
        (">", 4, 8, 8),
        ("<", 3, 9, 1),
        ("<", 2, 6, 1),
    ):
        body = b"Exif\0\0" + exif(order, kind, value)
        data = encoded(RGB)
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]
        assert read_header(data, "k").orientation == wanted


# --- scaled decoding


@pytest.mark.parametrize(
    ("least", "wanted"),
    [((224, 224), (375, 500)), ((188, 250), (188, 250)), ((180, 200), (188, 250)), ((90, 120), (94, 125)),
     ((1, 1), (47, 63)), ((189, 10), (375, 500)), ((400, 600), (375, 500))],
)  # fmt: skip
def test_scaled_decoding_halves_as_long_as_the_result_is_large_enough(
    least: tuple[int, int], wanted: tuple[int, int]
) -> None:
    assert decode(encoded(picture(375, 500)), "k", 3, min_size=least).shape[:2] == wanted


def test_scaled_decoding_shows_the_same_picture() -> None:
    data = encoded(picture(200, 300), quality=95)
    small = decode(data, "k", 3, min_size=(50, 75))
    wanted = Image.fromarray(decode(data, "k", 3)).resize((75, 50), Image.Resampling.BOX)
    assert np.abs(small.astype(int) - np.asarray(wanted)).mean() < 1.5


def test_only_jpeg_comes_smaller() -> None:
    assert decode(encoded(picture(64, 64), "PNG"), "k", min_size=(8, 8)).shape == (64, 64, 3)


# --- headers


def test_headers_tell_what_is_stored() -> None:
    assert read_header(encoded(RGB), "k") == Header("JPEG", 60, 40, 3, 8)
    assert read_header(encoded(RGB, "PNG"), "k") == Header("PNG", 60, 40, 3, 8)
    assert read_header(
        tiff(np.zeros((4, 5, 6), np.uint16), photometric="minisblack", planarconfig="contig"), "k"
    ) == (Header("TIFF", 5, 4, 6, 16))
    assert read_header(encoded(RGB, "BMP"), "k").format == "BMP"


def test_texts_and_profiles_of_a_png_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    odd = chunk(b"iCCP", b"x\0\0garbage") + chunk(b"zTXt", b"a\0\0broken") + chunk(b"gAMA", b"\0\0\0\0")
    data = png(RGB.reshape(40, -1), 2, 8, odd)
    assert (decode(data, "k") == RGB).all()
    assert capfd.readouterr() == ("", "")


def test_a_checksum_alone_can_be_wrong() -> None:
    data = bytearray(png(RGB.reshape(40, -1), 2, 8))
    data[-13] ^= 1  # the last byte of IDAT's checksum
    assert reason(bytes(data)) == "damaged (checksum of its part 'IDAT')"


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="None is immortal from Python 3.12 on")
def test_thousands_of_damaged_files_do_not_use_up_references_to_none() -> None:
    damaged = bytearray(encoded(RGB, "PNG"))
    damaged[100] ^= 255
    before = sys.getrefcount(None)
    for data in (bytes(damaged), encoded(RGB, "PNG")[:-30], encoded(RGB)[:-30]):
        for _ in range(300):
            reason(data)
    assert sys.getrefcount(None) > before - 200


def test_threads_leave_the_filters_of_warnings_as_they_were() -> None:
    data = [encoded(RGB, "WEBP"), encoded(RGB, "GIF"), tiff(RGB, photometric="rgb")] * 40
    with warnings.catch_warnings():
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(lambda one: decode(one, "k", 3), data))) == 120
        assert warnings.filters == before


WHOLE = [
    encoded(RGB), encoded(RGB, progressive=True), encoded(RGB, "PNG"), encoded(RGB, "WEBP"), encoded(RGB, "GIF"),
    encoded(RGB, "BMP"), tiff(RGB, photometric="rgb", compression="zlib"), turned("JPEG", 6), turned("TIFF", 5),
    png(RGB.astype(">u2").reshape(40, -1), 2, 16),
]  # fmt: skip
