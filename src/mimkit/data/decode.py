"""Encoded bytes to pixels: upright, (H, W, C), at the depth they were stored in.

The decoder goes by content: simplejpeg in its strict form for JPEG (scaled by a power of two where the caller's
crop allows it), imagecodecs for PNG (Pillow would cut 16-bit colour to 8 bits and skips checksums), tifffile for
TIFF, Pillow for the rest and for what those cannot do (CMYK, stray bytes in a JPEG). Colour profiles are ignored.
Whatever goes wrong comes out as a DecodeError with a short reason: a damaged image never stops a run.
"""

import zlib

import numpy as np
import simplejpeg

from mimkit.data.header import DecodeError, Header, open_pillow, png_chunks, quiet, read_header
from mimkit.data.tiff import read_tiff
from mimkit.errors import counted

__all__ = ["MAX_PIXELS", "DecodeError", "Header", "decode", "read_header"]

MAX_PIXELS = 500_000_000  # declared pixels: 1.5 GB of RGB; more is refused before any of it is asked for
MAX_BYTES_PER_PIXEL = 8  # on average at the limit, so that 200 bands of float cannot ask for 400 GB
SCALES = (8, 4, 2)  # libjpeg-turbo also has 3/8 and the like, but those are slower than no scaling
PNG_NEEDED = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
CUT = ("premature end", "truncated", "too small", "not enough image data", "failed to read")


def decode(
    data: bytes | np.ndarray,
    key: str,
    channels: int | None = None,
    min_size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Pixels (H, W, C) of an encoded picture or of an array (H, W) or (H, W, C), upright and C-contiguous.

    The result is uint8, uint16 or float32: 1-bit becomes 0 and 255, 16 bits stay, other integers and floats become
    float32 with their values kept. Animations and multi-page files give their first picture.
    channels: None for as many as are stored (palette applied, transparency on white); 3 repeats grey, turns CMYK to
    RGB and puts transparency on white; 1 takes the luminance (ITU-R 601) of RGB; any other number must be the
    stored one. min_size: (height, width), upright, that the caller needs at least: a JPEG may come smaller than
    stored, by 2, 4 or 8, never below this.
    Raises DecodeError, and nothing else, with `.key` and a short `.reason`.
    """
    try:
        if isinstance(data, np.ndarray):
            pixels, alpha = data[..., None] if data.ndim == 2 else data, False
        else:
            header = read_header(data, key)
            _check_size(header, key, max_pixels)
            pixels, alpha, orientation = _pixels(data, key, header, channels, min_size)
            pixels = _upright(pixels, orientation)
        pixels = _to_depth(pixels, key)
        return np.require(_to_channels(pixels, alpha, key, channels), requirements=["C", "W"])
    except DecodeError:
        raise
    except MemoryError:
        raise DecodeError(key, "needs more memory than there is") from None
    except Exception as error:  # decoders raise anything on damaged bytes; none of it may stop a run
        raise DecodeError(key, _reason(error)) from error


def _check_size(header: Header, key: str, max_pixels: int) -> None:
    area = header.width * header.height
    if area == 0:
        raise DecodeError(key, f"declares {header.width} x {header.height} pixels")
    if area > max_pixels:
        raise DecodeError(
            key,
            f"declares {header.width} x {header.height} pixels, more than the limit of {_count(max_pixels)}",
        )
    if area * header.channels * header.bits / 8 > max_pixels * MAX_BYTES_PER_PIXEL:
        size = f"{header.width} x {header.height} pixels x {counted(header.channels, 'channel')} of {header.bits} bits"
        raise DecodeError(
            key, f"declares {size}, more than the limit of {_count(max_pixels * MAX_BYTES_PER_PIXEL)} bytes"
        )


def _count(number: int) -> str:
    return f"{number / 1e6:.0f} million" if number >= 1e6 else str(number)


def _pixels(
    data: bytes, key: str, header: Header, channels: int | None, min_size: tuple[int, int] | None
) -> tuple[np.ndarray, bool, int]:
    """(H, W, C) as stored, whether the last channel is alpha, and the orientation that is still to be undone."""
    if header.format == "JPEG" and header.channels in (1, 3):
        pixels = _jpeg(data, key, header, channels, min_size)
        if pixels is not None:
            return pixels, False, header.orientation
    if header.format == "PNG":
        return *_png(data, key), header.orientation
    if header.format == "TIFF":
        found = read_tiff(data, key)
        if found is not None:
            return *found, header.orientation
        return *_pillow(data, key), 1  # Pillow turns TIFF upright itself, and nothing else
    return *_pillow(data, key), header.orientation


def _jpeg(
    data: bytes, key: str, header: Header, channels: int | None, min_size: tuple[int, int] | None
) -> np.ndarray | None:
    """None where simplejpeg complains of something other than missing data: Pillow reads over stray bytes."""
    grey = channels == 1 or (channels is None and header.channels == 1)
    height, width = _scaled(header, min_size)
    try:
        return simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB", min_height=height, min_width=width)
    except ValueError as error:
        if "remature end" in str(error):
            raise DecodeError(key, "truncated") from error
        return None


def _scaled(header: Header, min_size: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width), as stored, after the largest power-of-two reduction that keeps `min_size`; 0, 0 for none."""
    if min_size is None:
        return 0, 0
    low, wide = min_size if header.orientation < 5 else min_size[::-1]
    for scale in SCALES:
        height, width = -(-header.height // scale), -(-header.width // scale)
        if height >= low and width >= wide:
            return height, width
    return 0, 0


def _png(data: bytes, key: str) -> tuple[np.ndarray, bool]:
    import imagecodecs

    pixels = imagecodecs.png_decode(_sound(data, key))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return pixels, pixels.shape[2] in (2, 4)


def _sound(data: bytes, key: str) -> bytes:
    """A PNG of the needed chunks only, its checksums verified (1.4 % of the time that decoding takes).

    Without this, libpng prints a line on stderr for each odd profile ("known incorrect sRGB") or wrong checksum, and
    imagecodecs drops a reference to None with each error, which ends Python 3.11 after some thousand damaged files.
    """
    view, kept = memoryview(data), [data[:8]]
    for name, start, end in png_chunks(data):
        if name[:1].islower() and name != b"tRNS":
            continue
        if end > len(data):
            break
        if name not in PNG_NEEDED or zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(
            view[end - 4 : end]
        ):
            raise DecodeError(key, f"damaged (checksum of its part {name.decode('latin-1')!r})")
        kept.append(data[start:end])
        if name == b"IEND":
            return b"".join(kept)
    raise DecodeError(key, "truncated")


def _pillow(data: bytes, key: str) -> tuple[np.ndarray, bool]:
    with quiet():
        image = open_pillow(data, key)
        alpha = image.has_transparency_data
        if alpha:
            image = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
        elif image.mode == "1":
            image = image.convert("L")
        elif image.mode not in ("L", "RGB", "I", "F") and not image.mode.startswith("I;16"):
            image = image.convert("RGB")
        pixels = np.asarray(image)
    if pixels.dtype == np.int32 and pixels.min() >= 0 and pixels.max() <= 65535:
        pixels = pixels.astype(np.uint16)  # Pillow holds 16-bit PGM in 32 bits
    return pixels[..., None] if pixels.ndim == 2 else pixels, alpha


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes the EXIF orientation (1..8) of (H, W, C), without copying."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _to_depth(pixels: np.ndarray, key: str) -> np.ndarray:
    """uint8 and uint16 (of either byte order) stay, bool becomes 0 and 255, the rest finite float32."""
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise DecodeError(key, f"an array of shape {pixels.shape}, where (height, width, channels) is wanted")
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype.kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype.kind not in "iuf":
        raise DecodeError(key, f"holds values of type {pixels.dtype}, where integers or floats are wanted")
    with np.errstate(over="ignore"):
        pixels = pixels.astype(np.float32, copy=False)
    bad = 1 - np.isfinite(pixels).mean()
    if bad:
        found = "NaN" if np.isnan(pixels).any() else "infinite values"
        raise DecodeError(key, f"holds {found} ({max(bad, 0.001):.1%} of its values)")
    return pixels


def _to_channels(pixels: np.ndarray, alpha: bool, key: str, channels: int | None) -> np.ndarray:
    found = pixels.shape[2]
    if channels == found:
        return pixels
    if alpha:
        pixels, found = _on_white(pixels), found - 1
    if channels in (None, found):
        return pixels
    if channels == 3 and found == 1:
        return pixels.repeat(3, axis=2)
    if channels == 1 and found == 3:
        return _luminance(pixels)
    bands = "band" if found == 1 else "bands"
    raise DecodeError(key, f"has {found} {bands}, where {channels} are wanted")


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """Composites (H, W, C + alpha) on white."""
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    if pixels.dtype == np.float32:
        return colour * alpha + (1 - alpha)
    top = np.uint32(np.iinfo(pixels.dtype).max)  # 65535 * 65535 + 32767 still fits 32 bits
    mixed = colour * alpha.astype(np.uint32) + top * (top - alpha)
    return ((mixed + top // np.uint32(2)) // top).astype(pixels.dtype)


def _luminance(pixels: np.ndarray) -> np.ndarray:
    """ITU-R 601, as Pillow and JPEG have it."""
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return (grey if pixels.dtype == np.float32 else np.rint(grey).astype(pixels.dtype))[..., None]


def _reason(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__)[:80]
    return "truncated" if any(cut in text.lower() for cut in CUT) else f"damaged ({text})"
