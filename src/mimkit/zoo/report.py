"""What became of a file's tensors and of a model's parameters, in words.

Loaders that print "missing keys" and "unexpected keys" leave it to the reader whether that is fine. Here everything
that was not simply copied carries its reason; what has none is an error and no report.
"""

from collections import Counter
from dataclasses import dataclass, field

from mimkit.errors import counted


@dataclass(frozen=True)
class Change:
    """A tensor that was fitted: our name, what it was, what it is, and by which rule."""

    name: str
    before: str
    after: str
    rule: str

    def __str__(self) -> str:
        return f"{self.name} {self.before} -> {self.after} ({self.rule})"


@dataclass(frozen=True)
class LoadReport:
    """source: what was read, and as which format. loaded: our names, those of `resized` among them.

    aside: reason -> names in the file that were left out. fresh: reason -> our names that keep their random start.
    norm_pix: whether the decoder in the file predicts pixels normalised per patch; None when there is none or nobody
    knows. notes: further sentences.
    """

    source: str
    format: str
    loaded: tuple[str, ...]
    resized: tuple[Change, ...] = ()
    aside: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fresh: dict[str, tuple[str, ...]] = field(default_factory=dict)
    norm_pix: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    def decoder(self) -> bool:
        """Whether a trained decoder was loaded: without one there is no reconstruction to look at."""
        return any(name.startswith("decoder.") for name in self.loaded)

    def __str__(self) -> str:
        lines = [f"{self.source}, read as {self.format}: {counted(len(self.loaded), 'tensor')} loaded"]
        lines += [f"resized: {change}" for change in self.resized]
        lines += [f"set aside: {_listed(names)}: {why}" for why, names in self.aside.items()]
        lines += [f"newly initialised: {_listed(names)}: {why}" for why, names in self.fresh.items()]
        return "\n  ".join([*lines, *self.notes])


def _listed(names: tuple[str, ...]) -> str:
    """A few names in full, many by what they have in front: '104 tensors (decoder.*)'."""
    if len(names) <= 3:
        return ", ".join(names)
    fronts = Counter(name.partition(".")[0] for name in names)
    shown = [f"{front}.*" if count > 1 else front for front, count in fronts.most_common(4)]
    return f"{counted(len(names), 'tensor')} ({', '.join([*shown, '...'] if len(fronts) > 4 else shown)})"
