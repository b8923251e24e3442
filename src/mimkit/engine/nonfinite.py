"""When a step is not finite: which samples it had, where the first bad number arose, and everything to try it again.

The loop leaves the update out by a flag on the device and hears of it a little later. Then this makes a line for
nonfinite.jsonl and, for the first step of a streak, `run/nonfinite/step-N/`: the failing micro-batches as the loader
gave them (`batch-<place>.safetensors`), the weights (model.safetensors) and state.json with the seed of each
micro-batch. It answers the reports of users whose loss turned NaN after days, with nothing left to look at.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from mimkit.engine.checkpoint import MODEL, STATE
from mimkit.engine.processes import Processes
from mimkit.engine.steps import Numbers, Step
from mimkit.engine.trainable import BatchLike

log = logging.getLogger(__name__)
FOLDER = "nonfinite"
MOST_SAVED = 5  # failing steps that are saved with batch and weights in one run; further ones are only noted


@dataclasses.dataclass(frozen=True)
class Failure:
    """What one process knows of a failed step: its failing micro-batches by place, their samples, where it arose.

    loss: whether a loss of its own was not finite; else its micro-batches are listed only in case no process has one.
    """

    loss: bool
    places: list[int]
    seeds: list[int]
    ids: list[int]
    module: str


def examine(
    step: Step,
    module: nn.Module,
    prepare: Callable[[Any], BatchLike],
    autocast: Callable[[], AbstractContextManager[object]],
) -> Failure:
    """Find the micro-batches of this process that failed and send the first through the module once more.

    They are those with a loss that is not finite, or all when only the gradient was not.
    """
    losses = [float(row["loss"]) for row in step.losses]
    bad = [index for index, loss in enumerate(losses) if not math.isfinite(loss)]
    torch.manual_seed(step.seeds[bad[0] if bad else 0])
    where = first_bad_module(module, prepare(step.batches[bad[0]]), autocast()) if bad else ""
    chosen = bad or list(range(len(losses)))
    return Failure(
        loss=bool(bad),
        places=[step.places[index] for index in chosen],
        seeds=[step.seeds[index] for index in chosen],
        ids=[int(number) for index in chosen for number in step.batches[index].ids.tolist()],
        module=where,
    )


def describe(
    step: Step, numbers: Numbers, failures: Sequence[Failure], lr_factor: float, names: Sequence[str]
) -> dict[str, Any]:
    """The line for nonfinite.jsonl, from what all processes know. names: parameters in the order of `step.norms`."""
    guilty = [failure for failure in failures if failure.loss] or failures
    return {
        "step": step.number,
        "lr": step.lr,
        "lr_factor": lr_factor,
        "loss": repr(numbers.losses["loss"]),
        "grad_norm": repr(numbers.norm),
        "ids": [number for failure in guilty for number in failure.ids],
        "module": next((failure.module for failure in guilty if failure.module), None),
        "gradient": first_bad_gradient(step.norms, names),
        "places": [place for failure in guilty for place in failure.places],
        "seeds": [seed for failure in guilty for seed in failure.seeds],
    }


def sentence(line: dict[str, Any]) -> str:
    """The line in words, for the log."""
    ids = ", ".join(str(number) for number in line["ids"][:8]) + (", ..." if len(line["ids"]) > 8 else "")
    backward = math.isfinite(float(line["loss"]))
    where = (
        f"in {line['module']}" if line["module"] else "in the gradients" if backward else "in the loss itself"
    )
    kept = f" Saved to {line['saved']}." if line.get("saved") else ""
    return (
        f"Step {line['step']} was not finite (loss {line['loss']}, gradient norm {line['grad_norm']}), first {where}; "
        f"its update is left out. Samples: {ids}.{kept}"
    )


def save(
    run: Path, line: dict[str, Any], step: Step, module: nn.Module, weights_of: int, processes: Processes
) -> str | None:
    """Write run/nonfinite/step-N and return its path relative to the run; None when there are enough or no room.

    weights_of: finished steps of the weights that are saved. The failed step itself changed nothing, but on a GPU up
    to a few good steps may have followed before the host heard of it.
    """
    folder = run / FOLDER / f"step-{step.number}"

    def begin() -> bool:
        if len(list((run / FOLDER).glob("step-*"))) >= MOST_SAVED:
            return False
        return _written(folder, lambda: _save_weights(folder, line, module, weights_of))

    if not processes.from_first(begin):
        return None
    mine = [index for index, place in enumerate(step.places) if place in line["places"]]
    for index in mine:
        tensors = tensors_of(step.batches[index])
        target = folder / f"batch-{step.places[index]}.safetensors"
        _written(folder, partial(save_file, tensors, target))
    return str(folder.relative_to(run))


@torch.no_grad()
def first_bad_module(module: nn.Module, batch: BatchLike, context: AbstractContextManager[object]) -> str:
    """The name of the first submodule whose output is not finite when `batch` goes through the module once more.

    Says so when it is the images themselves, and gives '' when the forward pass is finite (then it was the gradient).
    """
    if not bool(torch.isfinite(batch.images.float()).all()):
        return "the images"
    found: list[str] = []
    hooks = [part.register_forward_hook(_watch(name, found)) for name, part in module.named_modules() if name]
    try:
        with context, torch.compiler.set_stance("force_eager"):
            module(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""


def first_bad_gradient(norms: Tensor, names: Sequence[str]) -> str | None:
    """The first parameter, in the module's order, whose gradient is not finite; None when all are."""
    bad = (~torch.isfinite(norms)).nonzero().flatten().tolist()
    return names[bad[0]] if bad else None


def tensors_of(batch: Any) -> dict[str, Tensor]:
    """All tensors of a batch of whatever form by dotted name ('mask.visible'), on the CPU, ready for safetensors."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _walk(batch, "")}


def _walk(value: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in dataclasses, mappings and sequences, with their dotted names."""
    if isinstance(value, Tensor):
        yield prefix, value
        return
    entries: list[tuple[str, Any]] = []
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries = [(entry.name, getattr(value, entry.name)) for entry in dataclasses.fields(value)]
    elif isinstance(value, dict):
        entries = [(str(key), entry) for key, entry in value.items()]
    elif isinstance(value, list | tuple):
        entries = [(str(index), entry) for index, entry in enumerate(value)]
    for key, entry in entries:
        yield from _walk(entry, f"{prefix}.{key}" if prefix else key)


def _watch(name: str, found: list[str]) -> Callable[..., None]:
    def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
        for _, tensor in () if found else _walk(output, ""):
            if not found and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                found.append(name)

    return look


def _save_weights(folder: Path, line: dict[str, Any], module: nn.Module, weights_of: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors_of(module.state_dict()), folder / MODEL)
    (folder / STATE).write_text(
        json.dumps({**line, "weights_of_step": weights_of}, indent=1), encoding="utf-8"
    )


def _written(folder: Path, write: Callable[[], None]) -> bool:
    """Whether `write` worked. A full disk must not end a run for the sake of its diary: it is said and passed over."""
    try:
        write()
    except (OSError, SafetensorError) as error:
        log.warning("The failing step could not be saved to %s (%s); the run goes on.", folder, error)
        return False
    return True
