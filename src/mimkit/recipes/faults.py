"""What is wrong with a recipe, in sentences: the field, what was given, what is allowed, the nearest known name.

`recipes.load` collects the faults of a file, of what it extends and of all overrides, and raises them as one error.
What is allowed is worded from the schema's types alone, so a new field needs no words of its own.
"""

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from mimkit.errors import nearest
from mimkit.recipes.schema import Misfit, Recipe
from mimkit.recipes.text import fields, section, variants

Fault = tuple[str, str]  # (dotted key, or "" for the whole; the sentence without the key)
Clash = tuple[tuple[str, ...], str]  # (the dotted keys that do not fit together, the sentence)
_LONGEST = 60  # characters of a given value that a message repeats
# Of a job (`--launch`), which stand among the overrides; no section of a recipe may be called so.
JOB_OPTIONS = ("nodes", "gpus", "tasks", "cpus", "mem", "time", "partition", "account", "qos", "constraint")
_COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}
_NOUNS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
    type(None): ("null", "null"),
}
_BOUNDS = {"ge": "of at least", "gt": "greater than", "le": "of at most", "lt": "less than"}


def invalid(values: dict[str, Any]) -> list[Fault]:
    """Every fault in the values of a recipe whose keys are all known.

    Fields that do not fit together are looked for even when others are wrong by themselves.
    """
    try:
        Recipe.model_validate(values)
        return []
    except ValidationError as error:
        kinds = dict(_faulty(entry) for entry in error.errors() if entry["loc"])
        clashes = _clashes(error)
    unknown_names = {key for key, kind in kinds.items() if kind == "union_tag_invalid"}
    if unknown_names:  # which hide all other faults of their sections
        wrong = [(key, _sentence(key, kinds[key], values)) for key in sorted(unknown_names)]
        return wrong + invalid(_without(values, unknown_names))
    if not clashes:
        # A required key that is missing takes its section with it.
        faulty = {key.rpartition(".")[0] if kind == "missing" else key for key, kind in kinds.items()}
        clashes = _clashes_without(values, faulty)
    found = [(key, _sentence(key, kind, values)) for key, kind in kinds.items()]
    return found + [(keys[0], sentence) for keys, sentence in clashes]


def unknown(key: str) -> Fault:
    """The fault of a dotted key that the schema lacks, with the nearest one that it has."""
    if key in JOB_OPTIONS:
        return key, (
            f"there is no such key; {key}= belongs to a job, so add --launch slurm, or --launch local for a job on "
            "this machine."
        )
    parent, _, leaf = key.rpartition(".")
    model = _model(parent)
    siblings = [f"{parent}.{name}" if parent else name for name in fields(model)] if model else []
    everything = list(keys())
    guess = (
        nearest(key, siblings)
        or _only([k for k in everything if k.rpartition(".")[2] == leaf])
        or nearest(key, everything)
        or _only([k for k in everything if nearest(leaf, [k.rpartition(".")[2]])])
    )
    known = f" {parent or 'A recipe'} has: {', '.join(fields(model))}." if model and not guess else ""
    return key, f"there is no such key.{guess}{known}"


def keys(model: type[BaseModel] = Recipe, parent: str = "") -> Iterator[str]:
    """All dotted keys of a recipe, sections before their fields."""
    for name, info in fields(model).items():
        key = f"{parent}.{name}" if parent else name
        yield key
        inner = section(info.annotation)
        if inner:
            yield from keys(inner, key)


def find(key: str) -> FieldInfo | None:
    """The field behind a dotted key, None where the schema has none."""
    parent, _, leaf = key.rpartition(".")
    model = _model(parent)
    return fields(model).get(leaf) if model else None


def allowed(info: FieldInfo) -> str:
    """What a field may hold, in words: "a whole number of at least 1, or null"."""
    return _describe(info.annotation, list(info.metadata))


def refuse(value: Any, info: FieldInfo) -> str:
    """The sentence for a value that a field cannot hold."""
    choices = [str(c) for v in variants(info.annotation) if get_origin(v) is Literal for c in get_args(v)]
    guess = nearest(value, choices) if isinstance(value, str) else ""
    return f"{_word(value)} given; allowed: {allowed(info)}.{guess}"


def _model(key: str) -> type[BaseModel] | None:
    """The model of the section at a dotted key ("" is the recipe itself)."""
    model: type[BaseModel] | None = Recipe
    for name in key.split(".") if key else []:
        info = fields(model).get(name) if model else None
        model = section(info.annotation) if info else None
    return model


def _only(candidates: list[str]) -> str:
    return f" Did you mean {candidates[0]!r}?" if len(candidates) == 1 else ""


def _key(location: tuple[int | str, ...]) -> str:
    """The dotted key of pydantic's location; entries of a list belong to their field, tags of a union to nobody."""
    key = ""
    for part in location:
        longer = f"{key}.{part}" if key else str(part)
        if find(longer) is not None:
            key = longer
    return key


def _faulty(entry: Mapping[str, Any]) -> tuple[str, str]:
    """The dotted key and pydantic's name of the fault; a list that is too short is not a missing key."""
    key, kind = _key(entry["loc"]), entry["type"]
    if kind == "union_tag_invalid":
        return f"{key}.name", kind
    return key, "short" if isinstance(entry["loc"][-1], int) else kind


def _clashes(error: ValidationError) -> list[Clash]:
    """What the recipe's own check found; its sentences name the first key, which is cut off here."""
    found = []
    for entry in error.errors():
        cause = entry.get("ctx", {}).get("error")
        if isinstance(cause, Misfit):
            found += [(keys, sentence.removeprefix(f"{keys[0]}: ")) for keys, sentence in cause.clashes]
    return found


def _clashes_without(values: dict[str, Any], faulty: set[str]) -> list[Clash]:
    """The clashes between the fields that are fine by themselves."""
    try:
        Recipe.model_validate(_without(values, faulty))
    except ValidationError as error:
        return [clash for clash in _clashes(error) if not faulty.intersection(clash[0])]
    return []


def _without(values: dict[str, Any], faulty: set[str], parent: str = "") -> dict[str, Any]:
    """`values` less the faulty keys."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{parent}.{name}" if parent else name
        if key not in faulty:
            kept[name] = _without(value, faulty, key) if isinstance(value, dict) else value
    return kept


def _sentence(key: str, kind: str, values: dict[str, Any]) -> str:
    """What was given for `key` and what is allowed."""
    info = find(key)
    assert info is not None  # keys that the schema lacks never reach pydantic
    if kind == "missing":
        return f"missing; give {allowed(info)}."
    if kind == "extra_forbidden":
        parent = key.rpartition(".")[0]
        name = values[parent].get("name") or Recipe.model_fields[parent].default.name
        return f"{parent}.name={name} knows no such field; leave it out, or extend a recipe made for {name}."
    return refuse(_value(key, values), info)


def _value(key: str, values: dict[str, Any]) -> Any:
    value: Any = values
    for name in key.split("."):
        value = value[name]
    return value


def _word(value: Any) -> str:
    """A given value on one line, shortened."""
    if isinstance(value, dict):
        return "a section"
    text = (
        repr(value) if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=10**6)
    )
    text = text.removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _describe(annotation: Any, metadata: list[Any], many: bool = False) -> str:
    """The words for a type with its bounds; `many` for the plural."""
    wording = [m for m in metadata if isinstance(m, str)]
    origin, members = get_origin(annotation), get_args(annotation)
    if wording:
        return str(wording[0])
    if origin is Annotated:
        return _describe(members[0], [*metadata, *_flat(members[1:])], many)
    if origin in (Union, types.UnionType):
        return ", or ".join(_describe(member, metadata, many) for member in members)
    if origin is Literal:
        return _choice([repr(member) for member in members])
    if origin is tuple:
        return _describe_tuple(members)
    model = section(annotation)
    if model:
        return f"a section with {', '.join(fields(model))}"
    one, more = _NOUNS[annotation]
    return (more if many else one) + _bounds(metadata)


def _describe_tuple(members: tuple[Any, ...]) -> str:
    if members[-1] is Ellipsis:
        return f"a list of {_describe(members[0], [], many=True)}"
    letters = ", ".join("abcd"[: len(members)])
    kinds = [_describe(member, [], many=True) for member in members]
    if len(set(kinds)) == 1:
        return f"{_COUNTS[len(members)]} {kinds[0]}, as [{letters}]"
    each = [f"{x}: {_describe(m, [])}" for x, m in zip("abcd", members, strict=False)]
    return f"a list [{letters}] with {'; '.join(each)}"


def _bounds(metadata: list[Any]) -> str:
    """The words for bounds: " from 0 to 1", " greater than 0"."""
    limits = {
        name: getattr(m, name) for m in metadata for name in ("ge", "gt", "le", "lt") if hasattr(m, name)
    }
    if {"ge", "le"} <= limits.keys():
        return f" from {limits['ge']} to {limits['le']}"
    said = [f"{words} {limits[name]}" for name, words in _BOUNDS.items() if name in limits]
    return f" {' and '.join(said)}" if said else ""


def _flat(metadata: tuple[Any, ...]) -> list[Any]:
    """Metadata with pydantic's Field() objects opened."""
    return [inner for m in metadata for inner in (m.metadata if isinstance(m, FieldInfo) else [m])]


def _choice(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
