"""Golden cases: what the published code gives for a tiny model of given weights, and the one rule that compares.

A folder holds `cases.json` (for each case its name, configuration, tensors, inputs, outputs, tolerance) and one npz of
expected outputs a case, in float64. Weights and inputs are rebuilt by `fill` from names, seeds and shapes. Whatever an
adapter needs (sizes, options, tensors, inputs) stands in the case; its name only says to which family it belongs.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import fill

Outputs = Mapping[str, Any]
Edit = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Case:
    """One case of a `cases.json`. others: the cases beside it, by name, for those that refer to them."""

    system: str
    folder: Path
    spec: dict[str, Any]
    others: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.spec["name"]

    @property
    def config(self) -> dict[str, Any]:
        return self.spec["config"]

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Published name -> shape; cases may share those of another."""
        spec = (
            self.others[self.spec["tensors_same_as_case"]]
            if "tensors_same_as_case" in self.spec
            else self.spec
        )
        return {name: tuple(shape) for name, shape in spec["tensors"].items()}

    @cached_property
    def want(self) -> dict[str, np.ndarray]:
        """The expected outputs: arrays of the npz, and numbers that stand in the case itself, by dotted names."""
        said = dict(_flat(self.spec.get("expected", {})))
        file = self.folder / f"{self.name}.npz"
        if said and not file.is_file():
            return said
        with np.load(self.folder / f"{self.name}.npz", allow_pickle=False) as arrays:
            return said | dict(arrays)

    def weights(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The state dict of the published names, filled."""
        return {
            name: torch.from_numpy(fill.weight(name, shape)).to(dtype) for name, shape in self.tensors.items()
        }

    def tensor(self, name: str, dtype: torch.dtype, edit: Edit | None = None, **index: int) -> torch.Tensor:
        return torch.from_numpy(self.input(name, edit, **index)).to(dtype)

    def input(self, name: str, edit: Edit | None = None, **index: int) -> np.ndarray:
        """An input, filled and edited.

        index: values for a seed such as "500+k". edit: what the spec's own `edit` sentence asks for; assignments like
        `image[0, :, :4] = 0.37` are understood without it.
        """
        spec = self.spec["inputs"][name]
        kind, shape = spec["kind"], tuple(spec.get("shape", ()))
        if kind == "literal":
            array = np.array(spec["value"])
        elif kind == "fill.weight":
            array = fill.weight(spec["name"], shape)
        elif kind in ("normal", "uniform"):
            array = getattr(fill, kind)(_seed(spec["seed"], index), shape)
        else:
            raise ValueError(f"{self.name}: input {name!r} is of an unknown kind {kind!r}")
        array = array * spec["scale"] if "scale" in spec else array
        array = array + spec["shift"] if "shift" in spec else array
        if "edit" not in spec:
            return array
        return edit(array) if edit else _assign(array, spec["edit"])

    def output_names(self, pattern: str) -> list[re.Match[str]]:
        """The expected outputs whose whole name matches `pattern`."""
        return [found for name in self.want if (found := re.fullmatch(pattern, name))]

    def said(self, output: str) -> str:
        """The sentence that describes an output."""
        said = self.spec["outputs"].get(output, "")
        return said["meaning"] if isinstance(said, dict) else said


def pair(value: int | list[int]) -> tuple[int, int]:
    """Configurations give one number for a square, two for (h, w)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def ranks(order: np.ndarray | torch.Tensor) -> torch.Tensor:
    """The inverse permutation of each row, (N, L)."""
    return torch.as_tensor(order).argsort(dim=1).argsort(dim=1)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Nested dictionaries and lists of such as (dotted name, array)."""
    nested = isinstance(value, list) and value and isinstance(value[0], dict)
    if not nested and not isinstance(value, dict):
        yield name, np.array(value)
        return
    for key, inner in enumerate(value) if nested else value.items():
        yield from _flat(inner, f"{name}.{key}" if name else str(key))


def _seed(seed: int | str, index: Mapping[str, int]) -> int:
    """500, or "500+k" with the value of k."""
    if isinstance(seed, int):
        return seed
    start, letter = re.fullmatch(r"(\d+)\+(\w+)", seed).groups()
    return int(start) + index[letter]


def _assign(array: np.ndarray, sentence: str) -> np.ndarray:
    """Carry out 'then image[0, :, :4, 4:] = 0.37'."""
    found = re.search(r"\w+\[([-\d:, ]+)\] *= *([-+.\deE]+)", sentence)
    if not found:
        raise ValueError(f"cannot carry out the edit {sentence!r}")
    place = []
    for part in found[1].split(","):
        bounds = [int(bound) if bound.strip() else None for bound in part.split(":")]
        place.append(bounds[0] if len(bounds) == 1 else slice(*bounds))
    array[tuple(place)] = float(found[2])
    return array


def load_cases(folder: Path) -> list[Case]:
    """Every case of `folder`: its own `cases.json`, or those of the folders below it."""
    files = (
        [folder / "cases.json"] if (folder / "cases.json").is_file() else sorted(folder.glob("**/cases.json"))
    )
    cases = []
    for file in files:
        specs = json.loads(file.read_text(encoding="utf-8"))
        others = {spec["name"]: spec for spec in specs}
        parent = file.parent.parent if file.parent.name == "golden" else file.parent
        cases += [Case(parent.name, file.parent, spec, others) for spec in specs]
    return cases


def faults(case: Case, got: Outputs, dtype: torch.dtype) -> list[str]:
    """What differs from the case, one sentence an output; empty when it is served.

    The rule: |got - want| <= tolerance * max(1, max |want|), equal shapes, equal strings. Outputs that are undefined in
    the published code (all NaN) are not compared. What the case calls random, "check within 5 %", is compared so, entry
    by entry.
    """
    kind = "float32" if dtype == torch.float32 else "float64"
    tolerances = case.spec["tolerance"]
    tolerance = 0.0 if tolerances.get("exact") else float(tolerances[kind])
    sentences = []
    for name, want in case.want.items():
        if want.dtype.kind == "f" and want.size and np.isnan(want).all():
            continue
        if name not in got:
            sentences.append(f"{name}: the adapter gives nothing for it")
        elif share := re.search(r"check within ([\d.]+) %", case.said(name)):
            if fault := _off_by_more(np.asarray(_to_numpy(got[name])), want, float(share[1]) / 100):
                sentences.append(f"{name}: {fault}")
        elif fault := _difference(np.asarray(_to_numpy(got[name])), want, tolerance):
            sentences.append(f"{name}: {fault}")
    return sentences


def _to_numpy(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _off_by_more(got: np.ndarray, want: np.ndarray, share: float) -> str:
    """Each entry within `share` of its own size; undefined (NaN) in the same places."""
    if got.shape != want.shape:
        return f"the shape is {got.shape}, not {want.shape}"
    if (np.isnan(got) != np.isnan(want)).any():
        return "undefined (NaN) in other places"
    worst = np.nanmax(np.abs(got - want) / np.maximum(np.abs(want), 1e-12))
    return "" if worst <= share else f"off by {100 * worst:.1f} %, allowed {100 * share:g} %"


def _difference(got: np.ndarray, want: np.ndarray, tolerance: float) -> str:
    if got.shape != want.shape:
        return f"the shape is {got.shape}, not {want.shape}"
    if want.dtype.kind in "US":
        return (
            ""
            if np.array_equal(got, want)
            else f"the names differ: {got.tolist()} instead of {want.tolist()}"
        )
    if want.size == 0:
        return ""
    got, want = got.astype(np.float64), want.astype(np.float64)
    worst = np.abs(got - want).max()
    allowed = tolerance * max(1.0, np.abs(want).max())
    return "" if worst <= allowed else f"off by {worst:.3g}, allowed {allowed:.3g}"  # NaN is never within
