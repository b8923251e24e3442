"""What a picture says of itself, read from its first bytes, before any pixel memory is asked for.

The format is found by content, never by name. JPEG and PNG, nearly everything that is trained on, are parsed
here (a few microseconds); TIFF goes through tifffile (16 bits, many bands, float), the rest through Pillow's lazy
`open`. `decode.py` refuses by the declared size and picks the decoder from what stands here.
"""

import io
import logging
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mimkit.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

# Every start of frame (of the others in this range: C4 tables, C8 reserved, CC arithmetic tables).
SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; a palette (3) holds colours
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, both byte orders
TIFF_PALETTE = 3  # photometric interpretation
ORIENTATION = 0x0112  # the EXIF and TIFF tag


class DecodeError(DataError):
    """One image that cannot be used. `key` names it, `reason` is short: 'truncated', 'not an image', ..."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key!r} cannot be used: {reason}")
        self.key = key
        self.reason = reason

    def __reduce__(self) -> tuple[type["DecodeError"], tuple[str, str]]:
        """Errors cross from a loader's worker to the main process."""
        return DecodeError, (self.key, self.reason)


@dataclass(frozen=True)
class Header:
    """What a file declares.

    format: JPEG, PNG, TIFF or Pillow's name. width, height: pixels as stored. channels: as stored, with alpha; a
    palette counts as 3, with transparency as 4. bits: per channel (32 for float). orientation: the EXIF tag, 1..8.
    frames: pages of a TIFF, frames of an animation; only the first is ever read.
    """

    format: str
    width: int
    height: int
    channels: int
    bits: int
    orientation: int = 1
    frames: int = 1

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) once the orientation is applied."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(data: bytes, key: str) -> Header:
    """The header of an encoded picture; `key` names it in errors.

    Raises DecodeError for what is no picture or has no whole header.
    """
    if not data:
        raise DecodeError(key, "empty file")
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg(data, key)
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return _png(data, key)
        if data[:4] in TIFF_MAGIC:
            return _tiff(data, key)
        return _pillow(data, key)
    except DecodeError:
        raise
    except Exception as error:  # libraries raise anything on damaged bytes; none of it may stop a run
        raise DecodeError(key, f"damaged header ({str(error)[:80]})") from error


def _jpeg(data: bytes, key: str) -> Header:
    """Walks the markers up to the start of frame; EXIF lies before it."""
    at, end, orientation = 2, len(data), 1
    while 0 <= at < end - 3:
        marker = data[at + 1]
        if data[at] != 0xFF:  # stray bytes between segments: decoders skip them too
            at = data.find(b"\xff", at)
        elif marker == 0xFF:  # fill byte
            at += 1
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            at += 2
        elif marker in SOF_MARKERS and at + 10 <= end:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
            return Header("JPEG", width, height, channels, bits, orientation)
        elif marker in (0xD9, 0xDA):  # the end, or pixels, before any frame
            break
        else:
            length = data[at + 2] << 8 | data[at + 3]
            if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                orientation = exif_orientation(data[at + 10 : at + 2 + length])
            at += 2 + length
    raise DecodeError(key, "truncated")


def _png(data: bytes, key: str) -> Header:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise DecodeError(key, "truncated")
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    if colour not in PNG_CHANNELS:
        raise DecodeError(key, f"damaged header (colour type {colour})")
    channels, orientation, frames = PNG_CHANNELS[colour], 1, 1
    for name, start, end in png_chunks(data):
        if name == b"tRNS":
            channels = min(channels + 1, 4)
        elif name == b"eXIf":
            orientation = exif_orientation(data[start + 8 : end - 4])
        elif name == b"acTL" and end - start == 20:
            (frames,) = struct.unpack_from(">I", data, start + 8)
    return Header("PNG", width, height, channels, bits, orientation, frames)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, first byte, byte behind the last) of each chunk, by lengths alone. The last may reach past the end."""
    at = 8
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, at, at + 12 + length
        at += 12 + length


def _tiff(data: bytes, key: str) -> Header:
    import tifffile

    with quiet(), tifffile.TiffFile(io.BytesIO(data)) as file:
        if not len(file.pages):
            raise DecodeError(key, "truncated")
        page = file.pages.first
        tag = page.tags.get(ORIENTATION)
        turn = int(tag.value) if tag is not None and tag.value in range(1, 9) else 1
        bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
        channels = 3 if page.photometric == TIFF_PALETTE else page.samplesperpixel
        return Header("TIFF", page.imagewidth, page.imagelength, channels, bits, turn, len(file.pages))


def _pillow(data: bytes, key: str) -> Header:
    with quiet():
        image = open_pillow(data, key)
        width, height = image.size
        bits = 16 if image.mode.startswith("I;16") else 32 if image.mode in ("I", "F") else 8
        palette = image.mode in ("P", "PA")
        channels = 3 + image.has_transparency_data if palette else len(image.getbands())
        try:
            turn = image.getexif().get(ORIENTATION, 1)
        except Exception:  # a broken EXIF block counts as none
            turn = 1
        try:
            frames = getattr(image, "n_frames", 1)
        except Exception:  # an animation that is cut later on still has its first frame
            frames = 1
        return Header(
            str(image.format), width, height, channels, bits, turn if turn in range(1, 9) else 1, frames
        )


def open_pillow(data: bytes, key: str) -> "Image.Image":
    """Pillow's lazy `open`. Pillow's own limit on declared pixels (179 million) holds for what only it reads."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise DecodeError(key, "not an image, or of an unknown format") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise DecodeError(key, f"declares more than {limit} million pixels") from None


def exif_orientation(exif: bytes) -> int:
    """The orientation tag of an EXIF block (a TIFF directory); 1 where it is absent or the block is broken."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    (at,) = struct.unpack_from(order + "I", exif, 4)
    if at + 2 > len(exif):
        return 1
    (entries,) = struct.unpack_from(order + "H", exif, at)
    for entry in range(at + 2, min(at + 2 + 12 * entries, len(exif) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", exif, entry)
        if tag == ORIENTATION and kind in (3, 4):  # SHORT as the standard says, LONG as some cameras write
            (turn,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), exif, entry + 8)
            return turn if 1 <= turn <= 8 else 1
    return 1


class _Quiet:
    """Filters of warnings are global: threads share one change, the first in makes it, the last out undoes it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.undo = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self._begin()
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if self.inside == 0:
                    self.undo.close()

    def _begin(self) -> None:
        self.undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logger = logging.getLogger("tifffile")
        self.undo.callback(setattr, logger, "disabled", logger.disabled)
        logger.disabled = True


# Keeps what Pillow warns and tifffile logs about damaged files from the user: the DecodeError says it once.
quiet = _Quiet()
