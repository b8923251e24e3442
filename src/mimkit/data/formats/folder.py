"""Folders of images: one scan that never hangs, its index kept and cheaply checked, and class folders.

Order: by folder, then by name, as bytes. A link to a folder is entered once, after all real folders, unless what it
leads to has been read already (that ends loops). Hidden files and folders, archive leftovers and files without an
image extension are left out, each with its reason. Whether a file can be read shows when it is read: a million
permission checks would cost as much as the scan.
"""

import heapq
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mimkit.data.formats.files import FileSource
from mimkit.data.formats.store import Local, Remote, why_unreadable
from mimkit.data.index import (
    IMAGE_EXTENSIONS,
    IMAGE_SUFFIXES,
    KEEP_FROM,
    Ignored,
    Keys,
    LeftOut,
    keep,
    kept,
    left_out_words,
    suffix_of,
    why_not,
)
from mimkit.errors import DataError, UserError

log = logging.getLogger(__name__)
Progress = Callable[[int], None] | None

SHARD = b".tar"
LEFTOVERS = frozenset((b"__MACOSX", b"@eaDir", b"$RECYCLE.BIN", b"System Volume Information", b"lost+found"))
SETTLED_NS = 2_000_000_000  # a folder that changed within this time of its scan may change again unseen


@dataclass
class Listing:
    """One folder: names of images and shards, of folders, of links to folders, and what was left out."""

    changed: int  # st_mtime_ns
    files: list[bytes] = field(default_factory=list)
    folders: list[bytes] = field(default_factory=list)
    links: list[bytes] = field(default_factory=list)
    ignored: list[tuple[bytes, str]] = field(default_factory=list)


@dataclass
class Scan:
    """Paths relative to the root, in order: images, and tar shards apart. `tops`: the folders right below."""

    images: list[bytes]
    shards: list[bytes]
    tops: list[bytes]
    left_out: LeftOut


def scan_local(root: str, progress: Progress = None) -> Scan:
    """Scans a folder of this machine, or checks its kept index by the folders' times of change.

    Raises OSError where the root itself cannot be listed.
    """
    about = f"folder {os.path.realpath(root)}"
    known = _load(about)
    left_out = LeftOut()
    listings = dict(_walk(os.fsencode(root), known, left_out, progress))
    if sum(len(listing.files) for listing in listings.values()) >= KEEP_FROM and listings != known:
        _save(about, listings)
    names: list[bytes] = []
    for path in sorted(listings, key=lambda path: path.split(b"/") if path else []):
        head = path + b"/" if path else b""
        names += [head + name for name in listings[path].files]
        for name, reason in listings[path].ignored:
            left_out.add(head + name, reason)
    return _split(names, [path for path in listings if path and b"/" not in path], left_out)


def scan_remote(store: Remote, root: str, progress: Progress = None) -> Scan:
    """One listing of everything below; nothing is kept, because nothing cheap would tell that it changed."""
    left_out, names, tops = LeftOut(), [], set()
    for path in store.find(root, progress):
        name = os.fsencode(path)
        parts = name.split(b"/")
        if any(part.startswith(b".") or part in LEFTOVERS for part in parts):
            left_out.add(name, "hidden")
            continue
        if len(parts) > 1:
            tops.add(parts[0])
        if suffix_of(parts[-1]) in IMAGE_SUFFIXES or suffix_of(parts[-1]) == SHARD:
            names.append(name)
        else:
            left_out.add(name, why_not(suffix_of(parts[-1])))
    names.sort(key=lambda name: (name.split(b"/")[:-1], name))
    return _split(names, sorted(tops), left_out)


def open_folder(name: str, store: Local | Remote, root: str, scan: Scan, labels: bool) -> FileSource:
    """The images of a scan; with `labels`, the folders right below the root are classes, sorted by name.

    Raises DataError for no images and for a class without images, UserError for labels without class folders.
    """
    if not scan.images:
        raise DataError(no_images(name, scan.left_out.all()))
    for shard in scan.shards:
        scan.left_out.add(shard, "a tar shard beside images")
    if not labels:
        return FileSource(name, "folder", store, root, Keys.pack(scan.images), scan.left_out.all())
    classes, images, places = _classes(name, scan)
    keys = Keys.pack(images)
    return FileSource(name, "folder", store, root, keys, scan.left_out.all(), classes, places)


def no_images(name: str, ignored: tuple[Ignored, ...]) -> str:
    found = left_out_words(ignored) or "nothing at all"
    return f"{name} holds no images: looked for {' '.join(IMAGE_EXTENSIONS)} (any case), found {found}."


def _classes(name: str, scan: Scan) -> tuple[tuple[str, ...], list[bytes], np.ndarray]:
    tops = sorted(scan.tops)
    if not tops:
        raise UserError(
            f"{name} has no class folders, and labels are asked for: give a folder with one sub-folder a class, or a "
            "table with a label column."
        )
    images = [image for image in scan.images if b"/" in image]
    for image in scan.images:
        if b"/" not in image:
            scan.left_out.add(image, "beside the class folders, so of no class")
    place = {top: i for i, top in enumerate(tops)}
    places = np.fromiter((place[image.split(b"/", 1)[0]] for image in images), np.int32, len(images))
    classes = tuple(os.fsdecode(top) for top in tops)
    empty = [classes[i] for i in np.flatnonzero(np.bincount(places, minlength=len(tops)) == 0)]
    if empty:
        raise DataError(
            f"{name}: class folder{'s' * (len(empty) > 1)} without images: {', '.join(map(repr, empty))}; "
            "fill or remove what is no class"
        )
    _warn_of_case(name, classes)
    return classes, images, places


def _warn_of_case(name: str, classes: tuple[str, ...]) -> None:
    seen: dict[str, str] = {}
    for found in classes:
        other = seen.setdefault(found.casefold(), found)
        if other != found:
            log.warning("%s: the classes %r and %r differ only by case; they stay two", name, other, found)


def _split(names: list[bytes], tops: list[bytes], left_out: LeftOut) -> Scan:
    shards = [name for name in names if name[-4:].lower() == SHARD]
    images = [name for name in names if name[-4:].lower() != SHARD] if shards else names
    return Scan(images, shards, tops, left_out)


def _walk(
    root: bytes, known: dict[bytes, Listing], left_out: LeftOut, progress: Progress
) -> Iterator[tuple[bytes, Listing]]:
    """Each folder once: real ones first, then links in the order of their names."""
    count, seen = 0, set[tuple[int, int]]()
    folders, links = [b""], list[bytes]()
    while folders or links:
        linked = not folders
        path = folders.pop() if folders else heapq.heappop(links)
        full = root + b"/" + path if path else root
        try:
            found = os.stat(full)  # noqa: PTH116
            if (found.st_dev, found.st_ino) in seen:
                left_out.add(
                    path, "a link to a folder that is read already" if linked else "a folder met twice"
                )
                continue
            listing = known.get(path)
            if listing is None or listing.changed != found.st_mtime_ns:
                start = count
                tick = None if progress is None else lambda n, start=start: progress(start + n)
                listing = _list(full, found.st_mtime_ns, tick)
        except OSError as error:
            if not path:
                raise
            left_out.add(path, f"a folder that cannot be listed ({why_unreadable(error)})")
            yield path, Listing(-1)  # as a class folder it must not vanish: that would renumber the others
            continue
        seen.add((found.st_dev, found.st_ino))
        count += len(listing.files)
        if progress is not None:
            progress(count)
        head = path + b"/" if path else b""
        folders += [head + name for name in listing.folders]
        for name in listing.links:
            heapq.heappush(links, head + name)
        yield path, listing


def _list(folder: bytes, changed: int, tick: Progress) -> Listing:
    """One folder, sorted. No call per file but for links: the directory itself says what is a file."""
    listing = Listing(changed if time.time_ns() - changed > SETTLED_NS else -1)
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b".") or name in LEFTOVERS:
                listing.ignored.append((name, "hidden" if name.startswith(b".") else "an archive's leftover"))
            elif entry.is_symlink():
                _follow(listing, folder, name)
            elif entry.is_dir(follow_symlinks=False):
                listing.folders.append(name)
            elif entry.is_file(follow_symlinks=False):
                _take(listing, name)
            else:
                listing.ignored.append((name, "a pipe, socket or device"))
            if tick is not None and len(listing.files) % 10_000 == 9_999:
                tick(len(listing.files))
    for names in (listing.files, listing.folders, listing.links):
        names.sort()
    listing.ignored.sort()
    return listing


def _take(listing: Listing, name: bytes) -> None:
    suffix = suffix_of(name)
    if suffix in IMAGE_SUFFIXES or suffix == SHARD:
        listing.files.append(name)
    else:
        listing.ignored.append((name, why_not(suffix)))


def _follow(listing: Listing, folder: bytes, name: bytes) -> None:
    try:
        mode = os.stat(folder + b"/" + name).st_mode  # noqa: PTH116
    except FileNotFoundError:
        listing.ignored.append((name, "a link to nothing"))
    except OSError as error:  # ELOOP: a link that leads to itself
        listing.ignored.append((name, f"a link that cannot be followed ({error.strerror})"))
    else:
        if stat.S_ISDIR(mode):
            listing.links.append(name)
        elif stat.S_ISREG(mode):
            _take(listing, name)
        else:
            listing.ignored.append((name, "a pipe, socket or device"))


def _save(about: str, listings: dict[bytes, Listing]) -> None:
    """Counts as JSON, all names in one run of bytes."""
    reasons: dict[str, int] = {}
    rows, names = [], list[bytes]()
    for path, found in listings.items():
        why = [reasons.setdefault(reason, len(reasons)) for _, reason in found.ignored]
        rows.append([found.changed, len(found.files), len(found.folders), len(found.links), why])
        names += [path, *found.files, *found.folders, *found.links, *(name for name, _ in found.ignored)]
    keep(about, {"rows": rows, "reasons": list(reasons)}, names)


def _load(about: str) -> dict[bytes, Listing]:
    found = kept(about)
    if found is None:
        return {}
    facts, names = found
    listings, at = {}, 0
    for changed, files, folders, links, why in facts["rows"]:
        path, *own = names[at : (at := at + 1 + files + folders + links + len(why))]
        a, b, c = files, files + folders, files + folders + links
        ignored = [(name, facts["reasons"][i]) for name, i in zip(own[c:], why, strict=True)]
        listings[path] = Listing(changed, own[:a], own[a:b], own[b:c], ignored)
    return listings
