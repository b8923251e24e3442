"""What a picture says of itself, read from its first bytes, before any pixel memory is asked for.

The format is found by content, never by name. JPEG and PNG, nearly everything that is trained on, are parsed here (a
few microseconds); TIFF goes through tifffile (16 bits, many bands, float), the rest through Pillow's lazy `open`.
`decode.py` refuses by the declared size and picks the decoder from what stands here.
"""

import io
import struct
import warnings
from dataclasses import dataclass

from mimkit.errors import DataError

SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {
    0xC4,
    0xC8,
    0xCC,
}  # every start of frame; DHT, JPG, DAC are none
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; a palette (3) holds colours
ORIENTATION = 0x0112  # the EXIF and TIFF tag


class DecodeError(DataError):
    """One image that cannot be used. `key` names it, `reason` is short: 'truncated', 'not an image', ..."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key!r} cannot be read: {reason}")
        self.key = key
        self.reason = reason

    def __reduce__(self) -> tuple[type["DecodeError"], tuple[str, str]]:
        """Errors cross from a loader's worker to the main process."""
        return DecodeError, (self.key, self.reason)


@dataclass(frozen=True)
class Header:
    """width, height: pixels as stored. channels: as stored, alpha counted, a palette as 3 (4 with transparency).

    bits: per channel (32 for float). orientation: the EXIF tag, 1..8. frames: pages of a TIFF, frames of a GIF.
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
    """The header of an encoded picture. Raises DecodeError for what is no picture or has no whole header."""
    if not data:
        raise DecodeError(key, "empty file")
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg(data, key)
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return _png(data, key)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _tiff(data)
        return _pillow(data, key)
    except DecodeError:
        raise
    except Exception as error:  # libraries raise anything on damaged bytes; none of it may stop a run
        raise DecodeError(key, f"damaged header ({error})") from error


def _jpeg(data: bytes, key: str) -> Header:
    """Walks the markers up to the start of frame; EXIF lies before it."""
    at, end, orientation = 2, len(data), 1
    while at + 4 <= end:
        if data[at] != 0xFF:  # stray bytes between segments: decoders skip them too
            at = data.find(b"\xff", at)
            if at < 0:
                break
            continue
        marker = data[at + 1]
        if marker in (0xFF, 0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # fill bytes, markers without a length
            at += 1 if marker == 0xFF else 2
            continue
        length = data[at + 2] << 8 | data[at + 3]
        if marker in SOF_MARKERS and at + 10 <= end:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
            return Header("JPEG", width, height, channels, bits, orientation)
        if marker in (0xD9, 0xDA):
            break
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = exif_orientation(data[at + 10 : at + 2 + length])
        at += 2 + length
    raise DecodeError(key, "truncated")


def _png(data: bytes, key: str) -> Header:
    """IHDR, then the chunks' names only: transparency, EXIF and the number of frames may stand anywhere."""
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise DecodeError(key, "truncated")
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    channels, orientation, frames, at = PNG_CHANNELS.get(colour, 0), 1, 1, 33
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if name == b"tRNS":
            channels += 1
        elif name == b"eXIf":
            orientation = exif_orientation(data[at + 8 : at + 8 + length])
        elif name == b"acTL" and length == 8:
            frames = struct.unpack_from(">I", data, at + 8)[0]
        at += 12 + length
    return Header("PNG", width, height, channels, bits, orientation, frames)


def _tiff(data: bytes) -> Header:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        tag = page.tags.get(ORIENTATION)
        turn = tag.value if tag is not None and tag.value in range(1, 9) else 1
        bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
        return Header(
            "TIFF", page.imagewidth, page.imagelength, page.samplesperpixel, bits, turn, len(file.pages)
        )


def _pillow(data: bytes, key: str) -> Header:
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            raise DecodeError(key, "not an image") from None
        except Image.DecompressionBombError:
            raise DecodeError(key, "declares more pixels than Pillow accepts") from None
        width, height = image.size
        bits = 16 if image.mode.startswith("I;16") else 32 if image.mode in ("I", "F") else 8
        turn = image.getexif().get(ORIENTATION, 1)
        frames = getattr(image, "n_frames", 1)
        turn = turn if turn in range(1, 9) else 1
        return Header(str(image.format), width, height, len(image.getbands()), bits, turn, frames)


def exif_orientation(exif: bytes) -> int:
    """The orientation tag of an EXIF block ("II*\\0..." or "MM\\0*..."); 1 where it is absent or the block is broken."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    (at,) = struct.unpack_from(order + "I", exif, 4)
    if at + 2 > len(exif):
        return 1
    (entries,) = struct.unpack_from(order + "H", exif, at)
    for entry in range(at + 2, min(at + 2 + 12 * entries, len(exif) - 11), 12):
        tag, kind, count = struct.unpack_from(order + "HHI", exif, entry)
        if tag == ORIENTATION and kind == 3 and count == 1:
            (turn,) = struct.unpack_from(order + "H", exif, entry + 8)
            return turn if 1 <= turn <= 8 else 1
    return 1
