"""Patterns: `shard-{000..012}.tar`, `{a,b}/*.jpg`, `photos/**/*.png`."""

import os
import re

from mimkit.data.formats.folder import scan_local
from mimkit.data.formats.store import Remote, Store, exists, is_folder
from mimkit.errors import UserError

MAGIC = re.compile(r"[*?\[]")
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
WILDCARD = re.compile(r"(\*)|(\?)|\[(!?)([^\]]+)\]|([^*?\[]+|\[)")
MOST = 1_000_000  # shards or files that one pair of braces may stand for


def is_pattern(path: str) -> bool:
    return bool(MAGIC.search(path) or BRACES.search(path))


def expand_braces(pattern: str) -> list[str]:
    """`{000..012}` counts, with leading zeros kept; `{a,b}` lists. Several pairs multiply."""
    found = BRACES.search(pattern)
    if found is None:
        return [pattern]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    count = RANGE.fullmatch(found[1])
    if count is None and "," not in found[1]:
        return [head + found[0] + rest for rest in expand_braces(tail)]  # braces that are part of a name
    choices = _range(pattern, *count.groups()) if count else found[1].split(",")
    return [head + choice + rest for choice in choices for rest in expand_braces(tail)]


def match(store: Store, pattern: str) -> list[str]:
    """The paths that a pattern stands for, sorted within each of its parts.

    Raises UserError for a part in braces that is not there.
    """
    paths: list[str] = []
    for part in expand_braces(pattern):
        there = exists(store, part)
        if not there and MAGIC.search(part):
            paths += sorted(_glob(store, part), key=os.fsencode)
        elif not there:
            raise UserError(f"{part} does not exist, but the pattern {pattern} names it")
        else:
            paths.append(part)
    return paths


def fixed_part(pattern: str) -> str:
    """The folder above the first wildcard: keys are relative to it."""
    found = re.search(r"[*?\[{]", pattern)
    return pattern[: found.start() if found else None].rpartition("/")[0]


def _range(pattern: str, first: str, last: str) -> list[str]:
    low, high = int(first), int(last)
    if not low <= high < low + MOST:
        raise UserError(
            f"{{{first}..{last}}} in {pattern} is no range: the first number comes first, then the last"
        )
    return [str(number).zfill(len(first)) for number in range(low, high + 1)]


def _glob(store: Store, pattern: str) -> list[str]:
    if isinstance(store, Remote) or "**" not in pattern:
        return store.glob(pattern)
    root = fixed_part(pattern) or ("/" if pattern.startswith("/") else ".")
    if not is_folder(store, root):
        return []
    # The scan ends where links go round in circles; glob's own ** would follow each of them.
    scan = scan_local(root)
    wanted = _regex(pattern.removeprefix(root).removeprefix("/"))
    names = (os.fsdecode(name) for name in (*scan.images, *scan.shards))
    return [name if root == "." else f"{root.rstrip('/')}/{name}" for name in names if wanted.fullmatch(name)]


def _regex(pattern: str) -> re.Pattern[str]:
    """`**` any folders or none, `*` and `?` within one name."""
    parts = []
    for part in pattern.split("/"):
        if part == "**":
            parts.append("(?:[^/]+/)*")
        else:
            parts.append(WILDCARD.sub(_piece, part) + "/")
    return re.compile("".join(parts).removesuffix("/"), re.DOTALL)


def _piece(found: re.Match[str]) -> str:
    star, mark, negated, choice, plain = found.groups()
    if star or mark:
        return "[^/]*" if star else "[^/]"
    escaped = re.escape(choice or plain)
    return f"[{'^' if negated else ''}{escaped.replace(chr(92) + '-', '-')}]" if choice else escaped
