"""From a recipe's name, a YAML file or a run folder, and `key.path=value` overrides, to one checked `Recipe`.

Layers are merged key by key: what a file extends, the file itself, the overrides in their order. All faults of all
layers come as one `UserError`, a line each. The text side is `recipes.text`, the wording of faults `recipes.faults`,
the making of objects `recipes.build`. Nothing here imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimkit.errors import UserError, nearest
from mimkit.recipes import faults
from mimkit.recipes.model_parts import Part
from mimkit.recipes.schema import Recipe
from mimkit.recipes.text import Document, dump, read, read_value, section, show, variants

__all__ = ["about", "difference", "dump", "names", "resolve", "show"]

RUN_RECIPE = "recipe.yaml"  # what a run folder calls its resolved recipe
_FOLDER = Path(__file__).parent
_SIZES = ("tiny", "small", "base", "large", "huge")
_AFTER = ("finetune", "linear_probe", "scratch")


@dataclass
class _Layers:
    """What the files and overrides say together, and where each key was said last."""

    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)  # what the weights say and was not laid down yet

    def fault(self, key: str, sentence: str, where: str = "") -> None:
        where = where or self.origin.get(key, "")
        place = f"{key} ({where})" if key and where else key or where
        self.faults.append(f"{place}: {sentence}")


def resolve(source: str | Path, overrides: Sequence[str] = (), weights: Sequence[str] = ()) -> Recipe:
    """The recipe that `source` names, with `overrides` on top.

    source: the name of a packaged recipe (`names()`), the path of a YAML file, or a run folder. overrides: texts
    `key.path=value`, the value in YAML; later ones win. weights: what the weights to start from say of themselves,
    written alike; it stands above packaged recipes and below files of one's own. Raises UserError with every fault, a
    line each.
    """
    layers = _Layers(weights=list(weights))
    path = _find(source)
    _add_file(path, layers, ())
    _add_weights(layers)
    layers.values.setdefault("name", path.parent.name if path.name == RUN_RECIPE else path.stem)
    for override in overrides:
        _add_override(override, layers)
    for key, sentence in faults.invalid(layers.values):
        layers.fault(key, sentence)
    if layers.faults:
        raise UserError(_together(str(source), layers.faults))
    return Recipe.model_validate(layers.values)


def names() -> list[str]:
    """The packaged recipes: pre-training first, then what follows it, each by size."""

    def rank(name: str) -> tuple[bool, str, int, str]:
        kind, _, size = name.rpartition("_")
        return kind.startswith(_AFTER), kind, _SIZES.index(size) if size in _SIZES else len(_SIZES), size

    return sorted((file.stem for file in _FOLDER.glob("*.yaml")), key=rank)


def about(name: str) -> str:
    """What a packaged recipe says of itself: paper, table, expected time and result, command."""
    return resolve(name).about


def difference(old: Recipe, new: Recipe) -> list[tuple[str, Any, Any]]:
    """The fields in which two recipes differ: (dotted key, value in `old`, value in `new`), in the schema's order."""
    before, after = _flat(old), _flat(new)
    keys = list(dict.fromkeys([*before, *after]))
    return [(k, before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)]


def _find(source: str | Path, beside: Path | None = None) -> Path:
    """The YAML file behind a name, a path or a run folder; relative paths are seen from `beside` where given."""
    text = str(source)
    path = (beside or Path()) / Path(text).expanduser()
    if text in names():
        return _FOLDER / f"{text}.yaml"
    if path.is_dir():
        if (path / RUN_RECIPE).is_file():
            return path / RUN_RECIPE
        raise UserError(
            f"{text} is a folder without a {RUN_RECIPE}, so it is not a run; name a recipe ({', '.join(names())}), "
            "a YAML file or a run folder."
        )
    if path.is_file():
        return path
    if faults.find(text.partition("=")[0]) is not None and "=" in text:
        raise UserError(f"{text!r} is an override; name a recipe before it ({', '.join(names())}).")
    if path.suffix in (".yaml", ".yml"):
        raise UserError(
            f"The recipe file {text} does not exist; `mimkit recipes list` names the packaged recipes."
        )
    known = nearest(text, names()) or nearest(path.name, _names_in(path.parent))
    known = known or f" Known: {', '.join(names()[:5])}, ...; `mimkit recipes list` names all."
    raise UserError(
        f"There is no recipe {text!r}.{known} A YAML file or a run folder will do too, and images for `mimkit "
        "pretrain`."
    )


def _names_in(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:  # there is none, or it is not for us to read
        return []


def _add_file(path: Path, layers: _Layers, chain: tuple[Path, ...]) -> None:
    """Merge the file at `path` into `layers`, what it extends first. chain: the files that led here."""
    chain = (*chain, path.resolve())
    document = _read(path)
    base = document.values.pop("extends", None)
    if base is not None:
        _add_base(base, path, document.lines["extends"], layers, chain)
        # What a variant is called and says of itself is its own affair.
        for key in ("name", "about"):
            layers.values.pop(key, None)
    if path.parent != _FOLDER:
        _add_weights(layers)
    where = {key: f"{path.name}, line {line}" for key, line in document.lines.items()}
    for key, sentence in document.faults:
        layers.fault(key, sentence, where.get(key, path.name))
    layers.origin |= where
    for key, sentence in _screen(document.values):
        layers.fault(key, sentence)
    _merge(layers.values, document.values)


def _add_weights(layers: _Layers) -> None:
    """Merge what the weights say, once."""
    said, layers.weights = layers.weights, []
    for override in said:
        _add_override(override, layers)


def _add_base(base: Any, path: Path, line: int, layers: _Layers, chain: tuple[Path, ...]) -> None:
    """Merge the recipe that the file at `path` extends."""
    where = f"{path.name}, line {line}"
    try:
        found = _find(str(base), beside=path.parent)
    except UserError as error:
        layers.fault("extends", str(error), where)
        return
    if found.resolve() in chain:
        circle = " -> ".join(p.name for p in (*chain[chain.index(found.resolve()) :], found))
        layers.fault("extends", f"the files extend each other in a circle ({circle}); break it.", where)
        return
    _add_file(found, layers, chain)


def _read(path: Path) -> Document:
    try:
        return read(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; a recipe is YAML in UTF-8.") from None
    except OSError as error:
        raise UserError(f"The recipe {path} cannot be read ({error.strerror}).") from None


def _add_override(override: str, layers: _Layers) -> None:
    """Merge one `key.path=value`."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        layers.fault(
            "",
            "an override is written key.path=value, with no blanks around the equals sign."
            + _as_path(override),
            repr(override),
        )
        return
    info = faults.find(key)
    if info is None:
        layers.fault(*faults.unknown(key))
        return
    for said in [k for k in layers.origin if k == key or k.startswith(f"{key}.")]:
        del layers.origin[said]
    value, found = read_value(text.strip(), info.annotation, key)
    nested = value
    for name in reversed(key.split(".")):
        nested = {name: nested}
    found += _screen(nested)
    for fault in found:
        layers.fault(*fault)
    if not found:
        _merge(layers.values, nested)


def _as_path(word: str) -> str:
    """A hint for images that stand alone."""
    return f" Images are named with data.path={word}." if word and Path(word).expanduser().exists() else ""


def _screen(values: dict[str, Any], parent: str = "") -> list[faults.Fault]:
    """Take out of `values` the keys that the schema lacks and sections that are none; a fault for each.

    A section that is named and left empty says nothing, as when all its lines are comments.
    """
    found = []
    for name, value in list(values.items()):
        key = f"{parent}.{name}" if parent else name
        info = faults.find(key)
        if info is None:
            found.append(faults.unknown(key))
        elif isinstance(value, dict):
            found += _screen(value, key)
            continue
        elif section(info.annotation) is None or (value is None and type(None) in variants(info.annotation)):
            continue
        elif value is not None:
            found.append((key, faults.refuse(value, info)))
        del values[name]
    return found


def _merge(values: dict[str, Any], more: dict[str, Any]) -> None:
    """Lay `more` over `values` in place: sections key by key, all else replaced."""
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            _merge(values[name], value)
        else:
            values[name] = value


def _together(source: str, lines: list[str]) -> str:
    if len(lines) == 1:
        return lines[0]
    return "\n  ".join([f"{len(lines)} faults in the recipe {source} and its overrides:", *lines])


def _flat(part: Part, parent: str = "") -> dict[str, Any]:
    """The fields of a recipe by dotted key."""
    flat: dict[str, Any] = {}
    for name in type(part).model_fields:
        value, key = getattr(part, name), f"{parent}.{name}" if parent else name
        flat |= _flat(value, key) if isinstance(value, Part) else {key: value}
    return flat
