"""Key rules: how the names and forms of a published file's tensors become ours, and back.

A family of files is a table of (published pattern, our pattern, transform), read in both directions, so whatever can be
loaded can be written again. A pattern is a name with placeholders: `{i}` a number, `{p}` weight or bias, `{rest}`
anything. One of our tensors may be made of several published ones (separate query, key and value).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from mimkit.errors import DataError

PLACEHOLDERS = {"i": r"\d+", "p": "weight|bias", "rest": ".+"}


class Transform(NamedTuple):
    """read: the published tensors of one rule -> ours. write: ours -> the given number of published ones."""

    read: Callable[[list[Tensor]], Tensor]
    write: Callable[[Tensor, int], list[Tensor]]


KEEP = Transform(lambda parts: parts[0], lambda ours, _: [ours])
ROWS = Transform(
    torch.cat, lambda ours, count: list(ours.chunk(count))
)  # laid end to end along the first axis


class Rule(NamedTuple):
    """published: the pattern or patterns of a file; ours: the pattern of what they become."""

    published: tuple[str, ...]
    ours: str
    transform: Transform = KEEP


class Aside(NamedTuple):
    """Tensors of a file that are known and not wanted: their pattern, and in words what they are."""

    published: str
    what: str


class Family(NamedTuple):
    """The rules of one format of files, and what it may hold besides.

    container: the key of a published file under which its tensors lie. computed: (published, ours) -> further published
    tensors that follow from these, None where there are none.
    """

    name: str
    rules: tuple[Rule, ...]
    aside: tuple[Aside, ...] = ()
    container: str = "model"
    computed: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]] | None = None


class Reading(NamedTuple):
    """What a family makes of a file.

    tensors: by our names. aside: what was expected and left out -> published names. unexplained: published names that
    no rule covers, or whose companions (query without key) are missing.
    """

    tensors: dict[str, Tensor]
    aside: dict[str, list[str]]
    unexplained: list[str]


def read(family: Family, published: Mapping[str, Tensor]) -> Reading:
    """The file's tensors under our names."""
    parts: dict[tuple[int, str], dict[int, str]] = {}  # (rule, our name) -> place -> published name
    aside: dict[str, list[str]] = {}
    unexplained: list[str] = []
    for name in published:
        if place := _place(family, name):
            number, position, ours = place
            parts.setdefault((number, ours), {})[position] = name
        elif what := _known_aside(family, name):
            aside.setdefault(what, []).append(name)
        else:
            unexplained.append(name)
    tensors = {}
    for (number, ours), names in parts.items():
        rule = family.rules[number]
        if len(names) == len(rule.published):
            tensors[ours] = rule.transform.read([published[names[i]] for i in range(len(names))])
        else:
            unexplained.extend(names.values())
    return Reading(tensors, aside, unexplained)


def write(family: Family, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the names and in the forms of the family. Raises DataError for one that it has no rule for."""
    published: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        for rule in family.rules:
            if match := _pattern(rule.ours).fullmatch(name):
                forms = rule.transform.write(tensor, len(rule.published))
                names = [pattern.format_map(match.groupdict()) for pattern in rule.published]
                published.update(zip(names, forms, strict=True))
                break
        else:
            raise DataError(f"{name!r} has no name in the format {family.name!r}; choose another format.")
    return published if family.computed is None else published | family.computed(published, ours)


def covers(family: Family, names: Iterable[str]) -> bool:
    """Whether `write` has a name for each of ours."""
    return all(any(_pattern(rule.ours).fullmatch(name) for rule in family.rules) for name in names)


def explained(family: Family, names: Iterable[str]) -> float:
    """Share of a file's names that the family has a rule for."""
    known = list(names)
    hits = sum(bool(_place(family, name) or _known_aside(family, name)) for name in known)
    return hits / max(1, len(known))


def _place(family: Family, name: str) -> tuple[int, int, str] | None:
    """(rule, which of its published patterns, our name) of a published name."""
    for number, rule in enumerate(family.rules):
        for position, pattern in enumerate(rule.published):
            if match := _pattern(pattern).fullmatch(name):
                return number, position, rule.ours.format_map(match.groupdict())
    return None


def _known_aside(family: Family, name: str) -> str | None:
    return next((what for pattern, what in family.aside if _pattern(pattern).fullmatch(name)), None)


@cache
def _pattern(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", pattern)
    literal = [re.escape(piece) for piece in pieces[::2]]
    groups = [f"(?P<{name}>{PLACEHOLDERS[name]})" for name in pieces[1::2]]
    return re.compile("".join(a + b for a, b in zip(literal, [*groups, ""], strict=True)))
