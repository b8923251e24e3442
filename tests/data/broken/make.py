"""Writes the faulty images of this folder and their manifest: `python tests/data/broken/make.py` (needs scikit-image).

The picture is scikit-image's astronaut (NASA, public domain). `manifest.json` says of each file what a reader should
do: `read`, `skip` (not readable, or not an image at all) or `error` (readable, but not as three channels), and for
what is read its stored `size` [width, height].
"""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, PngImagePlugin
from skimage import data

HERE = Path(__file__).parent
ROWS: list[dict[str, Any]] = []
STORED = (
    None,
    None,
    0,
    3,
    1,
    5,
    2,
    6,
    4,
)  # by orientation: Pillow's transpose that stores an upright picture so
SIZE = (96, 72)


def put(path: str, content: bytes, action: str, **facts: Any) -> None:
    (HERE / path).parent.mkdir(exist_ok=True)
    (HERE / path).write_bytes(content)
    ROWS.append({"path": path, "action": action, **facts})


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(image: Image.Image, **options: Any) -> bytes:
    return encode(image, "JPEG", **{"quality": 85, **options})


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def tiff(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def plain(face: Image.Image, rocket: Image.Image) -> None:
    good = jpeg(face)
    for name in ("good.jpg", "no_extension", "jpeg_named.png"):
        put(name, good, "read", size=SIZE)
    put("good_grey.jpg", jpeg(face.convert("L")), "read", size=SIZE)
    put("UPPER.JPG", jpeg(rocket), "read", size=SIZE)
    put("progressive.jpg", jpeg(rocket, progressive=True), "read", size=SIZE)
    put("webp.webp", encode(rocket, "WEBP", quality=80), "read", size=SIZE)
    put("bitmap.bmp", encode(rocket.resize((48, 36)), "BMP"), "read", size=(48, 36))
    put("png_named.jpg", encode(rocket, "PNG"), "read", size=SIZE)
    put("folder_named.jpg/inside.jpg", good, "read", size=SIZE)
    put("twin_a.jpg", jpeg(face, quality=40), "read", size=SIZE)
    put("twin_b.jpg", jpeg(face, quality=40), "read", size=SIZE)
    put("one_pixel.png", encode(face.crop((0, 0, 1, 1)), "PNG"), "read", size=(1, 1))
    put("wide_3000x8.jpg", jpeg(face.resize((3000, 8)), quality=50), "read", size=(3000, 8))
    put("tall_8x3000.jpg", jpeg(face.resize((8, 3000)), quality=50), "read", size=(8, 3000))
    put("single_colour.png", encode(Image.new("RGB", SIZE, (128,) * 3), "PNG"), "read", size=SIZE)


def damaged(face: Image.Image) -> None:
    good, whole = jpeg(face), encode(face, "PNG")
    put("truncated.jpg", good[: len(good) // 2], "skip")
    put("truncated_tail.jpg", good[:-20], "skip")
    put("truncated.png", whole[:3000], "skip")
    bad = bytearray(whole)
    bad[60] ^= 0xFF
    put("bad_checksum.png", bytes(bad), "skip")
    flipped = bytearray(good)
    flipped[len(good) // 2 : len(good) // 2 + 40] = bytes(range(40))
    put("flipped_bytes.jpg", bytes(flipped), "read", size=SIZE)
    put("zero_bytes.jpg", b"", "skip")
    put("text.jpg", b"<html><head><title>404 Not Found</title></head></html>\n", "skip")
    put("random.jpg", np.random.default_rng(0).integers(0, 256, 700, np.uint8).tobytes(), "skip")
    put("only_header.jpg", good[:20], "skip")
    put("bomb_60000.png", png(60000, 60000, 8, 2, b"\0" * 2000), "skip")
    frame = good.find(b"\xff\xc0") + 5
    put("bomb_65500.jpg", good[:frame] + struct.pack(">HH", 65500, 65500) + good[frame + 4 :], "skip")
    put(
        "exif_broken.jpg",
        good[:2] + b"\xff\xe1\0\x14Exif\0\0II*\0\xff\xff\xff\xff\0\0" + good[2:],
        "read",
        size=SIZE,
    )
    put("icc_corrupt.jpg", jpeg(face, icc_profile=b"nonsense" * 50), "read", size=SIZE)
    put("._good.jpg", b"\0\5\x16\7" + bytes(80), "skip")
    put("Thumbs.db", b"\xd0\xcf\x11\xe0" + bytes(124), "skip")
    put("notes.txt", b"not an image\n", "skip")


def modes(face: Image.Image) -> None:
    put("cmyk.jpg", jpeg(face.convert("CMYK")), "read", size=SIZE)
    grey = np.asarray(face.convert("L")).astype(np.uint16) * 257
    put("grey16.png", encode(Image.fromarray(grey), "PNG"), "read", size=SIZE)
    put("grey16.tif", tiff(grey), "read", size=SIZE)
    put("grey16_dark.png", encode(Image.fromarray(grey // 16), "PNG"), "read", size=SIZE)
    small = np.asarray(face)[:36, :48].astype(">u2") * 257
    put(
        "rgb16.png",
        png(48, 36, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in small)),
        "read",
        size=(48, 36),
    )
    put("palette_transparent.png", encode(face.quantize(32), "PNG", transparency=0), "read", size=SIZE)
    clear = face.convert("RGBA")
    clear.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 96).astype(np.uint8), (72, 1))))
    put("rgba.png", encode(clear, "PNG"), "read", size=SIZE)
    put("grey_alpha.png", encode(clear.convert("LA"), "PNG"), "read", size=SIZE)
    put("one_bit.png", encode(face.convert("1"), "PNG"), "read", size=SIZE)
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", "word " * 40_000, zip=True)
    put("long_text.png", encode(face.resize((24, 18)), "PNG", pnginfo=note), "read", size=(24, 18))
    holes = grey[::2, ::2].astype(np.float32) / 65535
    holes[:, ::7] = np.nan
    put("float_nan.tif", tiff(holes), "error", size=(48, 36))
    bands = np.stack([np.roll(grey, 9 * i)[::2, ::2] for i in range(5)], -1)
    put(
        "five_bands_uint16.tif",
        tiff(bands, photometric="minisblack", planarconfig="contig"),
        "error",
        size=(48, 36),
        bands=5,
    )


def several(face: Image.Image) -> None:
    half = face.resize((48, 36))
    frames = [half.rotate(angle).quantize(64) for angle in (0, 90, 180)]
    put(
        "animated.gif",
        encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "read",
        size=(48, 36),
        frames=3,
    )
    pages = [half.rotate(angle) for angle in (0, 90, 180)]
    content = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    put("pages.tif", content, "read", size=(48, 36), frames=3)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turn = STORED[orientation]
        stored = face if turn is None else face.transpose(Image.Transpose(turn))
        content = jpeg(stored, exif=exif.tobytes(), quality=92)
        put(f"exif_{orientation}.jpg", content, "read", size=stored.size, upright=SIZE)


if __name__ == "__main__":
    picture = Image.fromarray(data.astronaut())
    face = picture.crop((160, 20, 352, 164)).resize(SIZE)
    rocket = picture.crop((320, 40, 512, 184)).resize(SIZE)
    plain(face, rocket)
    damaged(face)
    modes(face)
    several(face)
    (HERE / "manifest.json").write_text(json.dumps(ROWS, indent=0) + "\n")
