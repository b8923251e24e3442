"""A recipe as text: YAML in, with the scalar rules that people expect, and YAML out, plain or with a comment a field.

PyYAML follows YAML 1.1, where `1e-4` is a string, `off` a boolean and `010` the number eight. A recipe follows the core
rules of YAML 1.2, and beyond them the schema: where a field holds text, what was written is kept as it stands, so a
data folder may be called `2024` or `off`. `recipes.load` puts files and overrides together.
"""

import re
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mimkit.recipes.schema import Recipe

WIDTH = 100  # columns of a comment in `show`
_CORE = {
    "null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "int": (r"^[-+]?[0-9]+$", list("-+0123456789")),
    "float": (
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's scalars and without aliases."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute, emptied

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) have no place in a recipe", mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or 1.2 would read as something else, so that any reader reads the same."""


for _name, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value, 10))
_Dumper.add_representer(
    tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True)
)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """A string: a block where it has several clean lines, escaped where it holds controls, else as PyYAML would."""
    lines = text.split("\n")
    block = len(lines) > 1 and lines[0] != "" and all(x == x.strip() and x.isprintable() for x in lines)
    style = "|" if block else None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


@dataclass
class Document:
    """What a file or an override says: nested values, the line of each dotted key, and what cannot be understood.

    faults: (dotted key, sentence) pairs; an empty key where a fault belongs to the whole file.
    """

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)


def read(text: str) -> Document:
    """The document in `text`; keys that the schema lacks are left in for `recipes.load` to name."""
    document = Document()
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        document.faults.append(("", _syntax(error)))
        return document
    if root is None:
        return document
    if not isinstance(root, yaml.MappingNode):
        document.faults.append(("", "a recipe is made of `key: value` lines, and this file is not."))
        return document
    document.values = _plain(root, Recipe, "", document)
    return document


def read_value(text: str, annotation: Any, key: str) -> tuple[Any, list[tuple[str, str]]]:
    """The value of the override `key=text` for a field of type `annotation`, and the faults found in it.

    A field that holds text takes it as it stands (globs, braces and colons need no quotes), `null` aside.
    """
    kinds = variants(annotation)
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if str in kinds and not quoted:
        return (None if text == "null" and type(None) in kinds else text), []
    document = Document()
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        return None, [(key, f"{text!r} is not a value: {_syntax(error)}")]
    if node is None or (isinstance(node, yaml.ScalarNode) and node.value == "" and node.style is None):
        return None, [(key, "no value given; write `null` for none.")]
    return _plain(node, annotation, key, document), document.faults


def dump(recipe: Recipe) -> str:
    """`recipe` as YAML that `recipes.load.resolve` reads back to an equal recipe; floats are exact."""
    return "".join(_lines(recipe, "", comments=False))


def show(recipe: Recipe) -> str:
    """`recipe` as YAML with the schema's sentence above each field; it reads back to an equal recipe too."""
    return "".join(_lines(recipe, "", comments=True)).lstrip("\n")


def variants(annotation: Any) -> set[Any]:
    """The types that a field may hold: the members of a union, without their metadata (`float | None` -> both)."""
    if get_origin(annotation) is Annotated:
        return variants(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return {kind for member in get_args(annotation) for kind in variants(member)}
    return {annotation}


def section(annotation: Any) -> type[BaseModel] | None:
    """The model behind the annotation of a section of a recipe, else None; the nearest common base of a union's."""
    models = [k for k in variants(annotation) if isinstance(k, type) and issubclass(k, BaseModel)]
    if not models:
        return None
    return next(base for base in models[0].__mro__ if all(issubclass(model, base) for model in models))


def fields(model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """The fields of a section by name; of a union's base those that only some of its members have, too."""
    found = dict(model.model_fields)
    for member in model.__subclasses__():
        found |= {name: info for name, info in fields(member).items() if name not in found}
    return found


def _plain(node: yaml.Node, annotation: Any, key: str, document: Document) -> Any:
    """The Python value of `node`, read as a field of type `annotation` (None where the schema has no such key)."""
    if isinstance(node, yaml.MappingNode):
        return dict(_items(node, section(annotation), key, document))
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, _member(annotation, i), key, document) for i, item in enumerate(node.value)]
    kinds = variants(annotation)
    tag = node.tag.rpartition(":")[2]
    # Text stays text; and no field but a boolean one takes `true` (pydantic would read it as 1).
    if (str in kinds and tag in ("bool", "int", "float")) or (tag == "bool" and bool not in kinds):
        return node.value
    try:
        return _Loader("").construct_object(node)
    except (yaml.YAMLError, ValueError):
        document.faults.append(
            (key, f"{node.value!r} with the tag {node.tag} is not something a recipe can hold.")
        )
        return None


def _items(
    node: yaml.MappingNode, model: type[BaseModel] | None, key: str, document: Document
) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    for name_node, value_node in node.value:
        if not isinstance(name_node, yaml.ScalarNode):
            document.faults.append(
                (key, f"line {name_node.start_mark.line + 1}: a key must be a single word.")
            )
            continue
        name = name_node.value
        path = f"{key}.{name}" if key else name
        if name in seen:
            line = name_node.start_mark.line + 1
            document.faults.append(
                (path, f"given twice, on lines {document.lines[path]} and {line}; keep one.")
            )
            continue
        seen.add(name)
        document.lines[path] = name_node.start_mark.line + 1
        annotation = fields(model)[name].annotation if model and name in fields(model) else None
        yield name, _plain(value_node, annotation, path, document)


def _member(annotation: Any, index: int) -> Any:
    """The type of entry `index` of a tuple field."""
    for kind in variants(annotation):
        if get_origin(kind) is tuple:
            members = get_args(kind)
            if len(members) == 2 and members[1] is Ellipsis:
                return members[0]
            return members[min(index, len(members) - 1)]
    return None


def _syntax(error: yaml.YAMLError) -> str:
    """What YAML has against the text, with its place."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}not valid YAML ({getattr(error, 'problem', None) or str(error).splitlines()[0]})."


def _lines(part: BaseModel, indent: str, comments: bool) -> Iterator[str]:
    for name, info in type(part).model_fields.items():
        value = getattr(part, name)
        if comments:
            if isinstance(value, BaseModel) and not indent:
                yield "\n"
            yield textwrap.indent(_comment(info.description or ""), indent)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:\n"
            yield from _lines(value, indent + "  ", comments)
        else:
            text = yaml.dump({name: value}, Dumper=_Dumper, allow_unicode=True, width=float("inf"))
            yield textwrap.indent(text, indent)


def _comment(sentence: str) -> str:
    return (
        textwrap.fill(" ".join(sentence.split()), WIDTH, initial_indent="# ", subsequent_indent="# ") + "\n"
    )
