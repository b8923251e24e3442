"""Opens a foreign file of weights without ever running what it holds.

safetensors files are plain data. `.pth`, `.pt` and `.bin` are pickles: torch's weights-only reader takes those that
hold tensors alone; published training checkpoints carry more (MAE's an argparse.Namespace) and go through an unpickler
that knows the few functions tensors are rebuilt with and puts an inert stand-in for every other name. Nothing else is
imported, nothing is called. What cannot be read ends in one sentence.
"""

import json
import pickle
import textwrap
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mimkit.errors import DataError, UserError

CONTAINERS = ("model", "state_dict", "model_state_dict")
WRAPPERS = ("module.", "_orig_mod.", "model.")  # what DDP, torch.compile and Lightning put before every name
ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


class Opened(NamedTuple):
    """tensors: by the file's own names, without what wraps every name. extras: top-level keys besides them."""

    tensors: dict[str, Tensor]
    extras: tuple[str, ...]


def read_tensors(path: Path) -> Opened:
    """The tensors of a file, on the CPU.

    Raises UserError where there is no such file or its ending says that it is something else, DataError where it is
    damaged, foreign or holds no tensors by name.
    """
    if not path.is_file():
        raise UserError(
            f"There is no file {path}; give the path of a file of weights ({', '.join(ENDINGS)})."
        )
    if path.suffix not in ENDINGS:
        raise UserError(f"{path} does not look like a file of weights; expected one of {', '.join(ENDINGS)}.")
    _check_start(path)
    whole = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    opened = _unpack(whole)
    if not opened.tensors:
        what = "a pickled object" if isinstance(whole, Inert) else "no tensors by name"
        raise DataError(f"{path} holds {what}; save the model's state_dict() instead, or as safetensors.")
    return opened


def _check_start(path: Path) -> None:
    """Raise DataError for the usual impostors: empty files, pointers of Git LFS, error pages."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise DataError(f"{path} is empty; copy or download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`.")
    if start.lstrip()[:1] == b"<":
        raise DataError(f"{path} is a web page, not weights; download the file itself.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path} is damaged or no safetensors file ({_first_line(error)}); copy it again."
        ) from error


def _read_pickled(path: Path) -> Any:
    try:
        if _is_torchscript(path):
            raise DataError(f"{path} is a TorchScript program, not weights; save its state_dict() instead.")
        return _torch_load(path)
    except DataError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way at all
        raise DataError(
            f"{path} is damaged, cut short or no torch file ({_first_line(error)}); copy or download it again."
        ) from error


def _torch_load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle that torch did not write: the error says it once
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # it holds more than tensors
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=INERT_PICKLE)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _first_line(error: Exception) -> str:
    """The first sentence of what a library says."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
    return textwrap.shorten(first.rstrip("."), 160, placeholder=" ...")


class Inert:
    """Stands for every object whose class is not known to be harmless: takes anything, does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> "Inert":
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    def add(self, item: object) -> None:
        pass


HARMLESS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    **{
        ("torch", str(x).removeprefix("torch.")): x
        for x in vars(torch).values()
        if isinstance(x, torch.dtype)
    },
}


class InertUnpickler(pickle.Unpickler):
    """Knows what tensors are rebuilt with; every other name becomes `Inert` without being imported."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        return HARMLESS.get((module_name, global_name), Inert)


def _load(file: Any, **options: Any) -> Any:
    return InertUnpickler(file, **options).load()


# torch.load asks a module for its Unpickler and its load
INERT_PICKLE = types.ModuleType("inert_pickle")
vars(INERT_PICKLE).update(Unpickler=InertUnpickler, load=_load)


def _unpack(whole: Any) -> Opened:
    """The tensors of the mapping that holds them, wherever a training script puts it."""
    if not isinstance(whole, Mapping):
        return Opened({}, ())
    for key in CONTAINERS:
        if isinstance(whole.get(key), Mapping):
            inner = _unpack(whole[key])
            if inner.tensors:
                return Opened(inner.tensors, tuple(str(other) for other in whole if other != key))
    tensors = {str(key): value.detach() for key, value in whole.items() if isinstance(value, Tensor)}
    return Opened(_unwrap(tensors), tuple(str(key) for key in whole if key not in tensors))


def _unwrap(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that stand before every single name."""
    for prefix in WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return _unwrap({name.removeprefix(prefix): value for name, value in tensors.items()})
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object beside weights (a configuration, an index of shards). Raises DataError when it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({_first_line(error)}); copy it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not an object; copy it again.")
    return content
