"""A smaller copy of a set of images, as files in the same folders or as tar shards: fewer pixels in every epoch.

The shorter side is brought down to a given length, never up. Photographs become JPEG; 16 bits, floats and other
counts of channels than grey and RGB stay lossless (PNG, TIFF); a JPEG, PNG or TIFF that is small already is copied as
it is.

Workers read, shrink and encode; the main process writes, each file under another name first. So nothing half-written
bears a final name, and the same command after a kill goes on where it stopped and ends with the same bytes.
"""

import csv
import errno
import io
import json
import os
import tarfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from mimkit.data.augment import resize
from mimkit.data.batch import Skip
from mimkit.data.decode import DecodeError, decode, read_header
from mimkit.data.index import IMAGE_EXTENSIONS
from mimkit.data.loader import upright_size
from mimkit.data.sources import Source
from mimkit.data.workers import available_cores, chunks, ordered_map
from mimkit.errors import UserError

SETTINGS = "prepare.json"
WORK = ".prepare"  # unfinished files, and what was skipped in each finished shard
FORMATS = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif"}  # what is written, and copied as it is
LONGEST_NAME = 240  # bytes of one part of a path; file systems take 255, the extension included
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PrepareReport:
    """What became of a copy. written: images of this call. kept: images that an earlier, stopped call had written.

    skipped: images that cannot be read, of all calls.
    """

    out: str
    written: int
    kept: int
    skipped: tuple[Skip, ...]


class Encoded(NamedTuple):
    """One image, ready to be written under `name` (a path relative to the copy)."""

    id: int
    name: str
    content: bytes


Result = Encoded | Skip
Todo = tuple[int, str]  # id, name without extension
Encode = Callable[[Sequence[Todo], int], Generator[Result, None, None]]  # (what to do, processes) -> in order


def prepare_copy(
    source: Source,
    out: str | Path,
    short_side: int,
    shards: int | None = None,
    jobs: int | None = None,
    quality: int = 92,
    progress: Progress | None = None,
) -> PrepareReport:
    """Copies `source` to the folder `out` with shorter sides of at most `short_side` pixels.

    shards: None for files in the folders of the source; a number for that many tar shards (webdataset's form: members
    of one name belong together, `.cls` holds the class), each with an even run of the images in order. jobs:
    processes; None: one a core. quality: of JPEG, 1..100. progress: called with images done and images in all.
    Unreadable images are left out and reported. A source with classes that are not folders gets a `labels.csv` beside
    the files. Raises UserError for impossible numbers, for an `out` that holds something else or a copy made with
    other settings, and when it cannot be written.
    """
    folder = Path(out)
    settings = _settings(source, short_side, shards, quality)
    _check(source, folder, short_side, shards, quality)
    try:
        _begin(folder, settings)
        work: Encode = partial(_encode_all, source, short_side, quality)
        tick, processes = progress or _silent, jobs or available_cores()
        if shards is None:
            report = _write_files(source, folder, work, processes, tick)
        else:
            report = _write_shards(source, folder, work, processes, tick, min(shards, len(source)))
        skipped = [{"file": skip.name, "reason": skip.reason} for skip in report.skipped]
        _replace(folder, SETTINGS, _json(settings | {"skipped": skipped}))
    except OSError as error:
        raise UserError(_cannot_write(folder, error)) from error
    return report


def _silent(done: int, total: int) -> None:
    """No progress is wanted."""


def _settings(source: Source, short_side: int, shards: int | None, quality: int) -> dict[str, object]:
    return {
        "source": source.name,
        "index": source.digest(),
        "short_side": short_side,
        "shards": shards,
        "quality": quality,
    }


def _check(source: Source, out: Path, short_side: int, shards: int | None, quality: int) -> None:
    if short_side < 1 or not 1 <= quality <= 100 or (shards is not None and shards < 1):
        raise UserError(
            f"No copy can be made with a short side of {short_side} pixels, JPEG quality {quality}, {shards} shards; "
            "give 1 or more pixels, a quality of 1 to 100, 1 or more shards."
        )
    if source.kind == "folder" and out.resolve().is_relative_to(Path(source.name).resolve()):
        raise UserError(
            f"{out} lies in {source.name}, so the copy would become part of its own source; use another folder."
        )


def _begin(out: Path, settings: dict[str, object]) -> None:
    """Makes the folder, or finds in it an unfinished copy with the same settings; removes unfinished files."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder for the copy.")
    kept = out / SETTINGS
    if kept.exists():
        _check_same(out, kept, settings)
    elif out.is_dir() and any(entry.name != WORK for entry in out.iterdir()):
        raise UserError(f"{out} holds something else; give a folder that is empty or not there yet.")
    (out / WORK).mkdir(parents=True, exist_ok=True)
    for left in (out / WORK).glob("*.part"):
        left.unlink()
    if not kept.exists():
        _replace(out, SETTINGS, _json(settings))


def _check_same(out: Path, kept: Path, settings: dict[str, object]) -> None:
    try:
        before = json.loads(kept.read_bytes())
        changed = [name for name, value in settings.items() if before[name] != value and name != "source"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{kept} was not written by this command; use another folder.") from error
    if changed == ["index"]:
        raise UserError(
            f"{out} holds a copy of {before['source']} from before its images changed; use another folder."
        )
    if changed:
        was = ", ".join(
            f"{name} was {before[name]}, is {settings[name]}" for name in changed if name != "index"
        )
        raise UserError(f"{out} holds a copy that was made otherwise ({was}); use another folder.")


def _json(content: object) -> bytes:
    return json.dumps(content, indent=1).encode("ascii")


def _replace(out: Path, name: str, content: bytes) -> None:
    """Writes out/name whole or not at all."""
    part = out / WORK / f"{os.getpid()}.part"
    part.write_bytes(content)
    _finish(part, out / name)


def _finish(part: Path, final: Path) -> None:
    try:
        part.replace(final)
    except FileNotFoundError:
        final.parent.mkdir(parents=True, exist_ok=True)
        part.replace(final)


def _cannot_write(out: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk with {out} is full; free some space and give the same command again: it goes on from here."
    return f"{error.filename or out} cannot be written: {error.strerror or error}."


def _write_files(source: Source, out: Path, encode: Encode, jobs: int, progress: Progress) -> PrepareReport:
    """One file an image; what is there from an earlier call is not made again."""
    stems, there = _stems(source), _present(out)
    todo = [(id, stem) for id, stem in enumerate(stems) if _written_as(stem, there) is None]
    kept, skipped = len(stems) - len(todo), list[Skip]()
    with closing(encode(todo, jobs)) as results:
        for done, result in enumerate(results, start=kept + 1):
            if isinstance(result, Skip):
                skipped.append(result)
            else:
                _replace(out, result.name, result.content)
            progress(done, len(stems))
    if source.classes and source.kind != "folder":
        _replace(out, "labels.csv", _table(source, stems, _present(out)))
    return PrepareReport(str(out), len(todo) - len(skipped), kept, tuple(skipped))


def _present(out: Path) -> set[str]:
    """Files below `out`, relative; empty ones (left by a machine that lost power) do not count."""
    root = os.fspath(out)
    paths = [os.path.join(folder, file) for folder, _, files in os.walk(root) for file in files]  # noqa: PTH118
    return {os.path.relpath(path, root) for path in paths if os.stat(path).st_size}  # noqa: PTH116


def _written_as(stem: str, there: set[str]) -> str | None:
    return next((stem + suffix for suffix in FORMATS.values() if stem + suffix in there), None)


def _table(source: Source, stems: Sequence[str], there: set[str]) -> bytes:
    """`path,label` rows of the images that were written: here the folders do not tell the class."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["path", "label"])
    for id, stem in enumerate(stems):
        path, label = _written_as(stem, there), source.label(id)
        if path is not None and label is not None:
            rows.writerow([path, source.classes[label]])
    return text.getvalue().encode("utf-8", "surrogateescape")


def _write_shards(
    source: Source, out: Path, encode: Encode, jobs: int, progress: Progress, shards: int
) -> PrepareReport:
    """Tar shards of even runs of ids; whole shards from an earlier call stay."""
    n, stems = len(source), _stems(source, dots=False)
    edges = [n * shard // shards for shard in range(shards + 1)]
    paths = [out / f"images-{shard:06}.tar" for shard in range(shards)]
    missing = [not path.exists() for path in paths]
    todo = [
        (id, stems[id])
        for shard in range(shards)
        if missing[shard]
        for id in range(*edges[shard : shard + 2])
    ]
    skipped, written = list[Skip](), 0
    with closing(encode(todo, jobs)) as results:
        for shard, path in enumerate(paths):
            first, last = edges[shard : shard + 2]
            if missing[shard]:
                _write_shard(source, path, _counted(islice(results, last - first), progress, first, n))
            bad = _skipped_in(path)
            written += (last - first - len(bad)) * missing[shard]
            skipped += bad
            progress(last, n)
    return PrepareReport(str(out), written, n - len(skipped) - written, tuple(skipped))


def _counted(results: Iterator[Result], progress: Progress, first: int, n: int) -> Iterator[Result]:
    for done, result in enumerate(results, start=first + 1):
        yield result
        progress(done, n)


def _write_shard(source: Source, path: Path, results: Iterator[Result]) -> None:
    """One shard, its bytes a function of its images alone; what was skipped is kept beside it."""
    skipped = []
    part = path.parent / WORK / f"{path.name}.part"
    with part.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for result in results:
                if isinstance(result, Skip):
                    skipped.append([result.id, result.name, result.reason])
                    continue
                _add(tar, result.name, result.content)
                if source.classes and (label := source.label(result.id)) is not None:
                    _add(
                        tar,
                        str(PurePosixPath(result.name).with_suffix(".cls")),
                        source.classes[label].encode(),
                    )
        file.flush()
        os.fsync(file.fileno())
    _replace(path.parent, f"{WORK}/{path.name}.json", _json(skipped))
    part.replace(path)


def _skipped_in(path: Path) -> list[Skip]:
    beside = path.parent / WORK / f"{path.name}.json"
    return [Skip(*entry) for entry in json.loads(beside.read_bytes())] if beside.exists() else []


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # owner and time stay zero
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _stems(source: Source, dots: bool = True) -> list[str]:
    """A name for each image, without extension: its key made a safe relative path, and unique.

    dots: False puts `_` for the dots of a file's name, since webdataset ends a sample's name at the first one.
    """
    keys = [source.key(id) for id in range(len(source))]
    folders = {str(folder) for key in keys for folder in PurePosixPath(_safe(key)).parents}
    taken: set[str] = set()
    stems = []
    for id, key in enumerate(keys):
        stem = _safe(key)
        folder, slash, name = stem.rpartition("/")
        root, suffix = os.path.splitext(name)  # noqa: PTH122
        name = root if suffix.lower() in IMAGE_EXTENSIONS else name
        stem = folder + slash + (name if dots else name.replace(".", "_"))
        while stem in taken or any(stem + suffix in folders for suffix in FORMATS.values()):
            stem += f"~{id}"
        taken.add(stem)
        stems.append(stem)
    return stems


def _safe(key: str) -> str:
    """`key` as a path that stays inside the copy and that a scan of the copy finds."""
    parts = [part for part in key.split("/") if part not in ("", ".", "..")]
    visible = [f"_{part[1:]}" if part.startswith(".") else part for part in parts]
    return "/".join(os.fsdecode(os.fsencode(part)[-LONGEST_NAME:]) for part in visible) or "image"


def _encode_all(
    source: Source, short_side: int, quality: int, todo: Sequence[Todo], jobs: int
) -> Generator[Result, None, None]:
    """Each image of `todo`, encoded, in order."""
    work = partial(_encode_some, source, short_side, quality)
    for part in ordered_map(work, chunks(todo, 8), jobs if jobs > 1 else 0):
        yield from part


def _encode_some(source: Source, short_side: int, quality: int, todo: Sequence[Todo]) -> list[Result]:
    return [encode(source, id, stem, short_side, quality) for id, stem in todo]


def encode(source: Source, id: int, stem: str, short_side: int, quality: int) -> Result:
    """The image `id`, shrunk and encoded, named `stem` and its format's extension; Skip when it is unreadable."""
    key = source.key(id)
    try:
        data = source.read(id)
        height, width = upright_size(data, key)
        size = shrunk(height, width, short_side)
        pixels = decode(data, key, min_size=size)
        if size == (height, width) and isinstance(data, bytes):
            header = read_header(data, key)
            if header.format in FORMATS and header.frames == 1:
                return Encoded(id, stem + FORMATS[header.format], data)
    except DecodeError as error:
        return Skip(id, key, error.reason)
    suffix, content = encode_pixels(resize(pixels, size).permute(1, 2, 0).numpy(), quality)
    return Encoded(id, stem + suffix, content)


def shrunk(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with the shorter side at `short_side`, the longer one to the nearest pixel; never larger."""
    shorter = min(height, width)
    if shorter <= short_side:
        return height, width
    return round(height * short_side / shorter), round(width * short_side / shorter)


def encode_pixels(pixels: np.ndarray, quality: int) -> tuple[str, bytes]:
    """Extension and bytes of (H, W, C): JPEG for 8-bit grey and RGB, PNG for the same at 16 bits, else TIFF."""
    import simplejpeg

    pixels = np.ascontiguousarray(pixels)
    usual = pixels.shape[2] in (1, 3)
    if usual and pixels.dtype == np.uint8:
        space = "GRAY" if pixels.shape[2] == 1 else "RGB"
        chroma = "Gray" if space == "GRAY" else "420"
        return ".jpg", simplejpeg.encode_jpeg(pixels, quality, space, chroma)
    if usual and pixels.dtype == np.uint16:
        import imagecodecs

        return ".png", bytes(imagecodecs.png_encode(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels))
    return ".tif", _tiff(pixels)


def _tiff(pixels: np.ndarray) -> bytes:
    import tifffile

    # (H, W) for one band: tifffile takes (H, W, 1) for something else
    image, layout = (pixels, "contig") if pixels.shape[2] > 1 else (pixels[..., 0], None)
    file = io.BytesIO()
    tifffile.imwrite(
        file, image, photometric="minisblack", planarconfig=layout, compression="zlib", metadata=None
    )
    return file.getvalue()
