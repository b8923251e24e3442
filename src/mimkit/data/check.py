"""What is wrong with a set of images, found before it costs a night of training.

Every file is read and decoded as training would do it. A problem has an action: `skip` (a run replaces the image by
another one), `error` (skipped too, but something about the set itself has to be decided: NaN, a count of channels
that does not fit, a class without images) or `read` (used; the problem is for a person to judge: duplicates, odd
sizes, wrong extensions, pictures that are nearly black or flat).
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mimkit.data.augment import resize_centre
from mimkit.data.decode import DecodeError, decode, read_header
from mimkit.data.formats.folder import LEFTOVERS
from mimkit.data.normalise import FULL_SCALE
from mimkit.data.sources import Source, open_source
from mimkit.data.workers import available_cores, chunks, ordered_map
from mimkit.errors import counted

Action = Literal["read", "skip", "error"]
Severity = Literal["error", "warning", "note"]
RANK = {"read": 0, "skip": 1, "error": 2}

ODD_AREA = 16.0  # times the median area, or a sixteenth of it: a factor of 4 along each side
ODD_ASPECT = 4.0  # times longer or wider than the median picture
DARK = 1 << 13  # a 16-bit picture that stays below uses at most 13 of its bits: 12-bit cameras do that
FLAT = 1 / 255  # a patch whose deviation is below one grey level is noise once it is normalised by it

FORMATS = {
    "JPEG": ".jpg .jpeg .jpe .jfif",
    "PNG": ".png",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
    "TIFF": ".tif .tiff",
    "PPM": ".ppm .pgm .pbm .pnm",
    "JPEG2000": ".jp2",
    "AVIF": ".avif",
}
FORMAT_OF = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes.split()}


@dataclass(frozen=True)
class Row:
    """One problem of one file (or class folder, with a slash at its end)."""

    file: str
    kind: str
    severity: Severity
    action: Action
    detail: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What one image turned out to be. reason: why it cannot be read; None when it can."""

    key: str
    digest: bytes = b""
    format: str = "array"
    height: int = 0
    width: int = 0
    channels: int = 0
    bits: int = 0
    frames: int = 1
    top: float = 0.0  # the largest value, in 0..1 of the type's range
    flat: float = 0.0  # share of near-constant patches
    reason: str | None = None
    missing: bool = False


@dataclass(frozen=True)
class CheckReport:
    """rows: every problem, in the order of the files. findings: every image that was looked at.

    patch: side in pixels of the patches behind the share of near-constant ones.
    """

    path: str
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...] = field(repr=False)
    patch: int = 16

    @property
    def readable(self) -> list[Finding]:
        """The images that a run would use."""
        refused = {row.file for row in self.rows if row.action != "read"}
        return [finding for finding in self.findings if finding.key not in refused]

    @property
    def low_variance_patches(self) -> float:
        """Share of patches, over all readable images seen as evaluation sees them, that are near-constant."""
        shares = [finding.flat for finding in self.readable]
        return float(np.mean(shares)) if shares else 0.0

    def counts(self) -> dict[str, int]:
        """Problems by kind, the most frequent first."""
        return dict(Counter(row.kind for row in self.rows).most_common())

    def files(self) -> dict[str, Action]:
        """What a run does with every file that was found."""
        actions: dict[str, Action] = {finding.key: "read" for finding in self.findings}
        for row in self.rows:
            if RANK[row.action] >= RANK[actions.get(row.file, "read")]:
                actions[row.file] = row.action
        return actions

    def duplicates(self) -> list[list[str]]:
        """Groups of files with the same bytes, each in the order of the files."""
        groups: dict[bytes, list[str]] = defaultdict(list)
        for finding in self.findings:
            if finding.digest:
                groups[finding.digest].append(finding.key)
        return [group for group in groups.values() if len(group) > 1]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`; the keys are part of the interface.

        Names that are not UTF-8 hold lone surrogates: keep `ensure_ascii`, or write with `errors="surrogateescape"`.
        """
        readable = self.readable
        return {
            "path": self.path,
            "images": len(self.findings),
            "readable": len(readable),
            "problems": [
                {name: getattr(row, name) for name in ("file", "kind", "severity", "action", "detail")}
                for row in self.rows
            ],
            "counts": self.counts(),
            "duplicates": self.duplicates(),
            "formats": dict(Counter(finding.format for finding in readable).most_common()),
            "sizes": _sizes(readable),
            "channels": {str(n): count for n, count in Counter(f.channels for f in readable).most_common()},
            "bits": {str(n): count for n, count in Counter(f.bits for f in readable).most_common()},
            "low_variance_patches": round(self.low_variance_patches, 6),
            "patch": self.patch,
            "files": self.files(),
        }

    def summary(self) -> str:
        """The whole in a few lines of text."""
        readable = self.readable
        lines = [f"{self.path}: {counted(len(self.findings), 'image')}, {len(readable)} readable"]
        if readable:
            sizes = _sizes(readable)
            kinds = ", ".join(
                f"{count} {name}" for name, count in Counter(f.format for f in readable).most_common()
            )
            small, usual, large = (" x ".join(map(str, sizes[name])) for name in ("min", "median", "max"))
            same = len({(finding.height, finding.width) for finding in readable}) == 1
            between = small if same else f"from {small} to {large}, usually {usual}"
            lines.append(f"{kinds}; height x width {between}")
            lines.append(
                f"{self.low_variance_patches:.1%} of {self.patch}-pixel patches are near-constant"
                + (": see method.min_std" if self.low_variance_patches > 0.05 else "")
            )
        counts = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in self.counts().items())
        return "\n".join([*lines, f"problems: {counts or 'none'}"])


def _sizes(readable: list[Finding]) -> dict[str, list[int]]:
    """[height, width] of the smallest and the largest image by area, and the median of each side."""
    if not readable:
        return {}
    sizes = np.array([(finding.height, finding.width) for finding in readable])
    by_area = sizes[np.argsort(sizes.prod(axis=1), kind="stable")]
    median = np.median(sizes, axis=0).round().astype(int)
    return {"min": by_area[0].tolist(), "median": median.tolist(), "max": by_area[-1].tolist()}


def check_source(
    path: str | Path,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    labels: bool = False,
    channels: int | None = None,
    patch: int = 16,
    size: tuple[int, int] = (224, 224),
) -> CheckReport:
    """Reads every image at `path` and reports what is wrong.

    jobs: processes; None: one a core. progress: called with images done and images in all (0 in all while the index
    is made). labels: class folders are wanted, so images beside them are left out. channels: what a run will ask for;
    None: as most images have. patch, size: see `flat_share`. Raises UserError for a path that cannot be opened,
    DataError for one without images.
    """
    source = open_source(path, progress=None if progress is None else lambda n: progress(n, 0))
    findings = tuple(_inspect_all(source, jobs or available_cores(), progress, patch, size))
    rows = [
        Row(entry.key, "ignored", "note", "skip", _counted(entry.reason, entry.count))
        for entry in source.ignored
    ]
    rows += _problems(findings, channels)
    if source.kind == "folder":
        rows += _folder_problems(source, findings, {row.file for row in rows if row.action != "read"}, labels)
    order = {finding.key: place for place, finding in enumerate(findings)}
    rows.sort(key=lambda row: order.get(row.file, -1))
    return CheckReport(str(path), tuple(rows), findings, patch)


def _counted(reason: str, count: int) -> str:
    return reason if count == 1 else f"{reason} ({count} of them)"


def _inspect_all(
    source: Source, jobs: int, progress: Callable[[int, int], None] | None, patch: int, size: tuple[int, int]
) -> Iterator[Finding]:
    n, done = len(source), 0
    look = partial(_inspect, source, patch, size)
    for part in ordered_map(look, chunks(range(n), 8), jobs if jobs > 1 else 0):
        yield from part
        done += len(part)
        if progress is not None:
            progress(done, n)


def _inspect(source: Source, patch: int, size: tuple[int, int], ids: range) -> list[Finding]:
    return [inspect(source, id, patch, size) for id in ids]


def inspect(source: Source, id: int, patch: int = 16, size: tuple[int, int] = (224, 224)) -> Finding:
    """Reads, identifies and decodes the image `id`."""
    key = source.key(id)
    try:
        data = source.read(id)
    except DecodeError as error:
        return Finding(key, reason=error.reason, missing=True)
    content = data if isinstance(data, bytes) else data.tobytes()
    digest = blake2b(content, digest_size=16).digest()
    kind, frames = "array", 1
    try:
        if isinstance(data, bytes):
            header = read_header(data, key)
            kind, frames = header.format, header.frames
        image = decode(data, key)
    except DecodeError as error:
        return Finding(key, digest, kind, frames=frames, reason=error.reason)
    height, width, channels = image.shape
    view = resize_centre(image, size)
    scale = FULL_SCALE.get(view.dtype, 1.0)
    bits = image.dtype.itemsize * 8
    return Finding(
        key,
        digest,
        kind,
        height,
        width,
        channels,
        bits,
        frames,
        float(image.max()) / scale,
        flat_share(view, patch),
    )


def flat_share(view: Tensor, patch: int = 16) -> float:
    """Share of the patches of `view` (C, h, w) whose deviation, over all channels, is below one grey level of 8 bits.

    Normalised targets divide by that deviation: what is left of such a patch is noise at full contrast.
    """
    floats = view.to(torch.float32) / FULL_SCALE.get(view.dtype, 1.0)
    rows, columns = floats.shape[1] // patch, floats.shape[2] // patch
    if not rows or not columns:
        return 0.0
    cut = floats[:, : rows * patch, : columns * patch]
    patches = cut.unflatten(1, (rows, patch)).unflatten(3, (columns, patch))  # (C, rows, p, columns, p)
    return float((patches.permute(1, 3, 0, 2, 4).flatten(2).std(dim=2) < FLAT).float().mean())


def _problems(findings: tuple[Finding, ...], channels: int | None) -> list[Row]:
    rows = [_unreadable(finding) for finding in findings if finding.reason is not None]
    good = [finding for finding in findings if finding.reason is None]
    rows += _wrong_channels(good, channels)
    refused = {row.file for row in rows}
    used = [finding for finding in good if finding.key not in refused]
    rows += _duplicates(findings)
    rows += _odd_sizes(used)
    return rows + [row for finding in used for row in _oddities(finding)]


def _unreadable(finding: Finding) -> Row:
    reason = finding.reason or ""
    if finding.missing:
        return Row(finding.key, "missing", "error", "skip", reason)
    if "NaN" in reason or "infinite" in reason:
        return Row(finding.key, "nan", "error", "error", reason)
    return Row(finding.key, "broken", "error", "skip", reason)


def _wrong_channels(good: list[Finding], channels: int | None) -> list[Row]:
    """Grey and RGB are made of each other; any other count must be the one wanted."""
    counts = Counter(finding.channels for finding in good)
    wanted = channels or (counts.most_common(1)[0][0] if counts else 0)
    fits = {1, 3} if wanted in (1, 3) else {wanted}
    whose = "are wanted" if channels else "most images have"
    return [
        Row(
            f.key,
            "channels",
            "error",
            "error",
            f"has {counted(f.channels, 'channel')} where {wanted} {whose}",
        )
        for f in good
        if f.channels not in fits
    ]


def _duplicates(findings: tuple[Finding, ...]) -> list[Row]:
    first: dict[bytes, str] = {}
    rows = []
    for finding in findings:
        if finding.digest and (other := first.setdefault(finding.digest, finding.key)) != finding.key:
            rows.append(Row(finding.key, "duplicate", "warning", "read", f"the same bytes as {other}"))
    return rows


def _odd_sizes(used: list[Finding]) -> list[Row]:
    if not used:
        return []
    area = np.median([finding.height * finding.width for finding in used])
    aspect = np.median([finding.width / finding.height for finding in used])
    rows = []
    for finding in used:
        size = f"{finding.height} x {finding.width} (height x width)"
        areas = finding.height * finding.width / area
        aspects = finding.width / finding.height / aspect
        if not 1 / ODD_AREA < areas < ODD_AREA:
            rows.append(
                Row(finding.key, "odd_size", "warning", "read", f"{size}, {areas:.3g} x the usual area")
            )
        elif not 1 / ODD_ASPECT < aspects < ODD_ASPECT:
            rows.append(
                Row(finding.key, "odd_size", "warning", "read", f"{size}, {aspects:.3g} x the usual width")
            )
    return rows


def _oddities(finding: Finding) -> Iterator[Row]:
    """What one readable image may have of its own."""
    suffix = os.path.splitext(finding.key)[1].lower()  # noqa: PTH122 (keys may hold any bytes)
    named = FORMAT_OF.get(suffix)
    if named and finding.format in FORMATS and named != finding.format:
        yield Row(finding.key, "extension", "warning", "read", f"{finding.format} named {suffix}")
    if finding.bits == 16 and finding.top < DARK / 65535:
        top = round(finding.top * 65535)
        detail = f"16 bits, but no value above {top}: nearly black, {top.bit_length()} bits are used"
        yield Row(finding.key, "dark", "warning", "read", detail)
    if finding.flat == 1:
        yield Row(finding.key, "flat", "warning", "read", "every patch is near-constant")
    if finding.frames > 1:
        yield Row(finding.key, "frames", "note", "read", f"the first of {finding.frames} frames is used")


def _folder_problems(
    source: Source, findings: tuple[Finding, ...], refused: set[str], labels: bool
) -> list[Row]:
    """Folders right below the root, as classes: empty, unreadable, equal but for case; and images beside them."""
    inside: dict[str, list[str]] = {name: [] for name in _folders(source.name)}
    beside: list[str] = []
    for finding in findings:
        folder, slash, _ = finding.key.partition("/")
        (inside.setdefault(folder, []) if slash else beside).append(finding.key)
    rows = [
        Row(f"{name}/", "empty_class", "error" if labels else "warning", "error", _why_empty(keys))
        for name, keys in inside.items()
        if all(key in refused for key in keys)
    ]
    if labels and inside:
        rows += [Row(key, "no_class", "warning", "skip", "beside the class folders") for key in beside]
    seen: dict[str, str] = {}
    for name in inside:
        if (other := seen.setdefault(name.casefold(), name)) != name:
            rows.append(Row(f"{name}/", "case", "warning", "read", f"differs from {other}/ by case only"))
    return rows


def _folders(root: str) -> list[str]:
    """The visible folders right below a local folder; none for an address."""
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return sorted(name for name in names if not name.startswith(".") and os.fsencode(name) not in LEFTOVERS)


def _why_empty(keys: list[str]) -> str:
    if not keys:
        return "a folder without images"
    return (
        "its only image cannot be read" if len(keys) == 1 else f"none of its {len(keys)} images can be read"
    )
