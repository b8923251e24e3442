"""TIFF to an array, through tifffile and imagecodecs: 16 bits, float and any number of bands survive.

Pillow holds at most four channels of eight bits, so TIFF (microscopy, satellites, medicine) has its own way. Only the
first page is read. What is stored as a table or as ink (palette, CMYK, LAB) is colour for people: Pillow turns it.
"""

import io

import numpy as np

from mimkit.data.header import DecodeError, quiet

MINISWHITE, MINISBLACK, RGB, YCBCR = 0, 1, 2, 6
ASSOCIATED, UNASSOCIATED = 1, 2  # the two kinds of alpha: colour multiplied by it, or not
JPEG_IN_TIFF = (6, 7)


def read_tiff(data: bytes, key: str) -> tuple[np.ndarray, bool] | None:
    """The first page (H, W, C), as stored, and whether the last channel is alpha; None where Pillow should read.

    Raises DecodeError for a volume, and what tifffile raises on damage.
    """
    import tifffile

    with quiet(), tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        kind = page.photometric
        if kind not in (MINISWHITE, MINISBLACK, RGB) and not (
            kind == YCBCR and page.compression in JPEG_IN_TIFF
        ):
            return None
        pixels = _channels_last(page.asarray(maxworkers=1), page.axes, key)
        pixels = _full_range(pixels, page.bitspersample, inverted=kind == MINISWHITE)
        extra = tuple(page.extrasamples)
        if extra[-1:] == (ASSOCIATED,):
            return _divided(pixels), True
        return pixels, extra[-1:] == (UNASSOCIATED,)


def _channels_last(pixels: np.ndarray, axes: str, key: str) -> np.ndarray:
    if axes == "YX":
        return pixels[..., None]
    if axes == "YXS":  # bands interleaved
        return pixels
    if axes == "SYX":  # one plane a band
        return pixels.transpose(1, 2, 0)
    raise DecodeError(key, f"a TIFF of axes {axes}, where height, width and bands are wanted")


def _full_range(pixels: np.ndarray, bits: int, inverted: bool) -> np.ndarray:
    """1-, 2- and 4-bit grey spread over 0..255; white-is-zero turned round."""
    if bits in (1, 2, 4):
        pixels = pixels.astype(np.uint8) * np.uint8(255 // (2**bits - 1))
    if inverted and pixels.dtype.kind == "u":
        pixels = np.iinfo(pixels.dtype).max - pixels
    return pixels


def _divided(pixels: np.ndarray) -> np.ndarray:
    """Colour that was multiplied by its alpha, divided again, so that one rule composites all files."""
    if pixels.dtype.kind != "u":
        return pixels
    top = np.iinfo(pixels.dtype).max
    alpha = np.maximum(pixels[..., -1:].astype(np.float64), 1)
    colour = np.minimum(np.rint(pixels[..., :-1] * (top / alpha)), top).astype(pixels.dtype)
    return np.concatenate([colour, pixels[..., -1:]], axis=2)
