"""Writes weights: folders that are whole or not there, safetensors, and files as the published code has them.

An exported folder is filled under a temporary name beside its place and renamed, so that a kill or a full disk leaves
nothing half made; a folder that is there and holds something is never touched.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mimkit.errors import UserError
from mimkit.zoo import publisher
from mimkit.zoo.read import ENDINGS
from mimkit.zoo.rules import write

TEMPORARY = ".writing-"
FILE_ENDINGS = (*ENDINGS, ".onnx")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends well, and vanishes when it does not.

    Raises UserError when `out` is a file, a folder with something in it, is named like a file, or cannot be written.
    """
    check_free(out)
    temporary = out.with_name(f"{TEMPORARY}{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():  # empty
            out.rmdir()
        temporary.rename(out)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(out: Path) -> None:
    """Raise UserError unless `out` can become an exported folder."""
    if out.suffix in FILE_ENDINGS:
        raise UserError(
            f"{out} is named like a file; an export is a folder (weights, config.json, README.md), "
            f"such as {out.with_suffix('')}."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise UserError(f"{out} {what}; name a new folder, or remove that one first.")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file in the form that transformers and timm read too."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_published(path: Path, ours: Mapping[str, Tensor]) -> None:
    """A file as its code publishes it: {"model": tensors by its names}, tensors alone, no pickled object.

    Raises UserError where there is something at `path`, or it cannot be written; DataError for a tensor that has no
    name there.
    """
    if path.suffix not in (".pth", ".pt"):
        raise UserError(f"{path}: a published file ends in .pth; name it so.")
    if path.exists():
        raise UserError(f"{path} is there already; name a new file, or remove that one first.")
    family = publisher(ours)
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in write(family, ours).items()
    }
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({family.container: tensors}, temporary)
        temporary.rename(path)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"{path} cannot be written ({reason}); choose another place.")
