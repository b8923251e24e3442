"""Checkpoints that are either whole or not there: `run/checkpoints/step-N/`.

A folder holds model.safetensors (parameters and buffers, frozen teachers too), ema.safetensors when an average is
kept, optimizer.safetensors (`<kind>/<parameter>`, e.g. `exp_avg/encoder.norm.weight`) and state.json with the rest
and with size and checksum of the other files. It is written under a temporary name, synced to the disk and renamed,
so a kill or a full disk leaves the last good one alone; what is damaged later is noticed by size and checksum. No
pickle anywhere.
"""

import errno
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mimkit.engine import shards
from mimkit.engine.command import resume_command
from mimkit.engine.ema import MovingAverage
from mimkit.engine.trainable import trainable_parameters
from mimkit.errors import DataError, UserError

log = logging.getLogger(__name__)

MODEL, EMA, OPTIMISER, STATE = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"
FOLDER = "checkpoints"
TEMPORARY = ".writing-"
CHUNK = 1 << 22  # bytes


@dataclass(frozen=True)
class Rollback:
    """The run went back from `from_step` to the checkpoint of `to_step`, and on with the rate times `lr_factor`."""

    from_step: int
    to_step: int
    lr_factor: float
    bad_steps: tuple[int, ...]


@dataclass(frozen=True)
class State:
    """What a run is beyond its tensors; with them and the recipe it continues as if it had never stopped.

    step: finished optimiser steps. seed, threads, micro_batch, accumulate, world, parallel, precision: what bit-
    identity depends on. lr_factor: what rollbacks made of the learning rate. bad_steps: steps whose update was left
    out as not finite; bad_in_a_row: how many of them came last. images, skipped_images: read, and replaced as
    unreadable. recipe, data: digests; data_named: the data in a few words. extra: what the caller wants to find again
    (channel statistics, kind of target, ...), as JSON.
    """

    step: int = 0
    seed: int = 0
    threads: int = 1
    micro_batch: int = 0
    accumulate: int = 1
    world: int = 1
    parallel: str = "ddp"
    precision: str = "fp32"
    lr_factor: float = 1.0
    bad_steps: tuple[int, ...] = ()
    bad_in_a_row: int = 0
    rollbacks: tuple[Rollback, ...] = ()
    images: int = 0
    skipped_images: int = 0
    recipe: str = ""
    data: str = ""
    data_named: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """Images of one optimiser step over all processes and micro-batches."""
        return self.micro_batch * self.accumulate * self.world

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "State":
        """Read back what `asdict` wrote; keys of newer versions are left out."""
        known = {name: values[name] for name in (entry.name for entry in fields(State)) if name in values}
        known["bad_steps"] = tuple(known.get("bad_steps", ()))
        known["rollbacks"] = tuple(
            Rollback(**{**entry, "bad_steps": tuple(entry["bad_steps"])})
            for entry in known.get("rollbacks", ())
        )
        return State(**known)


def save(
    run: Path,
    state: State,
    module: nn.Module,
    optimiser: torch.optim.Optimizer | None = None,
    average: MovingAverage | None = None,
) -> Path:
    """Write `run/checkpoints/step-N` from one process; see `write`."""
    return write(run, state, tensors_of(module, optimiser, average))


def tensors_of(
    module: nn.Module,
    optimiser: torch.optim.Optimizer | None = None,
    average: MovingAverage | None = None,
    keep: bool = True,
) -> dict[str, dict[str, Tensor]]:
    """What goes into each file of a checkpoint, whole. Where it is sharded all processes have to ask, and those
    without `keep` get nothing of it.
    """
    files = {MODEL: module.state_dict()}
    if average is not None:
        files[EMA] = average.weights
    if optimiser is not None:
        files[OPTIMISER] = _optimiser_tensors(optimiser, module)
    return {name: shards.gathered(tensors, keep) for name, tensors in files.items()}


def write(run: Path, state: State, files: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Write `run/checkpoints/step-N` as a whole or not at all; returns the folder.

    Raises UserError when the disk is full or cannot be written; the checkpoints that were there are untouched.
    """
    target = folder_of(run, state.step)

    def fill(folder: Path) -> None:
        written = {name: _write_tensors(folder / name, tensors) for name, tensors in files.items()}
        _write_json(folder / STATE, {**asdict(state), "files": written})

    try:
        _write_whole(target, fill)
    except (OSError, SafetensorError) as error:
        raise UserError(_cannot_save(run, target, error)) from error
    return target


def restore(
    folder: Path,
    module: nn.Module,
    optimiser: torch.optim.Optimizer | None = None,
    average: MovingAverage | None = None,
) -> State:
    """Bring module, optimiser and moving average to the state of a checkpoint.

    Raises DataError when the checkpoint holds other tensors than the module, or no part that is asked for.
    """
    state = read_state(folder)
    try:
        module.load_state_dict(_cut(read_tensors(folder, MODEL), module.state_dict()))
    except RuntimeError as error:
        raise DataError(
            f"{folder} was saved by another model than the one of this recipe: {_first_lines(error)}. "
            "Resume with the recipe in the run folder."
        ) from error
    if optimiser is not None:
        _restore_optimiser(optimiser, module, read_tensors(folder, OPTIMISER))
    if average is not None:
        average.load(_cut(read_tensors(folder, EMA), average.weights))
    return state


def latest_good(run: Path) -> Path:
    """The newest checkpoint folder of a run that is whole; damaged ones are passed over with a warning.

    Raises UserError when the run has no checkpoint, DataError when none of them is whole.
    """
    there = saved(run)
    if not there:
        raise UserError(
            f"{run} holds no checkpoint (nothing under {FOLDER}/step-N); start the run without --resume."
        )
    for folder in reversed(there):
        try:
            check(folder)
        except DataError as error:
            log.warning("%s Falling back to the one before it.", error)
            continue
        return folder
    none = "The only checkpoint" if len(there) == 1 else f"None of the {len(there)} checkpoints"
    whole = "is not whole" if len(there) == 1 else "is whole"
    raise DataError(f"{none} in {run / FOLDER} {whole}; start again under another train.run.")


def saved(run: Path) -> list[Path]:
    """The checkpoint folders of a run by ascending step, whole or damaged."""
    found = [path for path in (run / FOLDER).glob("step-*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=step_of)


def check(folder: Path) -> State:
    """The state of a checkpoint whose files all have the size and checksum that were noted when it was written.

    Raises DataError that names the file and what is wrong with it.
    """
    state = read_state(folder)
    for name, noted in _read_json(folder / STATE)["files"].items():
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size != noted["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise DataError(
                f"Checkpoint {folder} is damaged: {name} {found}, expected {noted['bytes']} bytes."
            )
        if _checksum(path) != noted["crc32"]:
            raise DataError(
                f"Checkpoint {folder} is damaged: the checksum of {name} differs from the noted one."
            )
    return state


def read_state(folder: Path) -> State:
    """The state of a checkpoint. Raises DataError when there is none that can be read."""
    return State.from_json(_read_json(folder / STATE))


def read_tensors(folder: Path, name: str = MODEL) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint (MODEL, EMA or OPTIMISER), on the CPU.

    Raises DataError when the file is missing or damaged. EMA holds only what is trained: lay it over MODEL.
    """
    path = folder / name
    if not path.exists():
        raise DataError(f"Checkpoint {folder} has no {name}; it was saved by a run without it.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"Checkpoint file {path} cannot be read ({error}); use another checkpoint."
        ) from error


def rewrite_state(folder: Path, state: State) -> None:
    """Replace the state of a checkpoint and keep its tensors: how a rollback writes down the lowered rate."""
    files = _read_json(folder / STATE)["files"]
    temporary = folder / f"{TEMPORARY}{STATE}"
    try:
        _write_json(temporary, {**asdict(state), "files": files})
        temporary.replace(folder / STATE)
        _sync_folder(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(_cannot_save(folder.parent.parent, folder, error)) from error


def prune(run: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` (at least one) and step 0; left-overs of killed writes too."""
    there = saved(run)
    for folder in there[: -max(keep, 1)]:
        if step_of(folder) != 0:
            shutil.rmtree(folder)
    for remains in (run / FOLDER).glob(f"{TEMPORARY}*"):
        shutil.rmtree(remains)


def drop_after(run: Path, step: int) -> None:
    """Remove checkpoints of later steps: the run has gone back behind them."""
    for folder in saved(run):
        if step_of(folder) > step:
            shutil.rmtree(folder)


def folder_of(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step}"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder beside `target`, sync it and give it the name; nothing remains on failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY}{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        write(temporary)
        _sync_folder(temporary)
        if target.exists():  # a damaged one, or the same state saved again
            shutil.rmtree(target)
        temporary.rename(target)
        _sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Write and sync; returns size and checksum. Tied tensors are written once for each of their names."""
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        # contiguous: a channels-last weight is stored in the plain order
        value = tensor.detach().to("cpu").contiguous()
        plain[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(plain[name].data_ptr())
    save_file(plain, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "crc32": _checksum(path)}


def _optimiser_tensors(optimiser: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        f"{kind}/{names[id(parameter)]}": value
        for parameter, moments in optimiser.state.items()
        for kind, value in moments.items()
    }


def _restore_optimiser(
    optimiser: torch.optim.Optimizer, module: nn.Module, saved: Mapping[str, Tensor]
) -> None:
    """Put moments back in each parameter's own memory layout.

    A contiguous moment beside a channels-last weight would be read in the wrong order by the fused kernel, silently.
    """
    parameters = trainable_parameters(module)
    optimiser.state.clear()
    for key, value in saved.items():
        kind, _, name = key.partition("/")
        if name not in parameters:
            raise DataError(
                f"The saved optimiser state has a moment for {name}, which this model does not train."
            )
        parameter = parameters[name]
        home = torch.empty_like(parameter) if value.shape == parameter.shape else torch.empty_like(value)
        if kind == "step":  # the fused kernel wants the counter beside the weights
            home = torch.empty_like(value, device=parameter.device)
        optimiser.state[parameter][kind] = home.copy_(shards.cut(value, home)).detach()


def _cut(values: Mapping[str, Tensor], homes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Saved tensors, of those that this process holds a share of only the share."""
    return {
        name: shards.cut(value, homes[name]) if name in homes else value for name, value in values.items()
    }


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"Checkpoint {path.parent} is damaged: {path.name} cannot be read ({error})."
        ) from error
    if not isinstance(values, dict) or "step" not in values or "files" not in values:
        raise DataError(f"Checkpoint {path.parent} is damaged: {path.name} is not a state that mimkit wrote.")
    return values


def _checksum(path: Path) -> int:
    """CRC-32 of a file; 3 GB/s, small beside the writing."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _sync_folder(folder: Path) -> None:
    """Make names durable: a rename survives a power cut only when its folder was synced. Not a thing on Windows."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_save(run: Path, target: Path, error: Exception) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
    reason = "the disk is full" if full else str(error)
    there = [step_of(folder) for folder in saved(run) if folder != target]
    kept = f"the last good one, step {there[-1]}, is untouched" if there else "there is none before it"
    return (
        f"Checkpoint {target} could not be written: {reason}; {kept}. "
        f"Make room, then continue with `{resume_command(run)}`."
    )


def _first_lines(error: Exception, lines: int = 3) -> str:
    return " ".join(part.strip() for part in str(error).splitlines()[:lines])
