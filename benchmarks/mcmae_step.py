"""A MCMAE-B pre-training step, and its encoder alone, visible units against the dense computation as published.

Both get the same weights (written to the published names by the zoo's rules), images and mask, and what they return
must agree before anything is timed. The encoder's rows are cumulative: forward and backward up to stage 1, up to stage
2, and whole with the fusion. `mcmae_over_mae` sets the step beside ours of MAE-B, whose encoder sees as many tokens.
"""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.mae_step import RATIO, inputs, mask_of
from benchmarks.mae_step import Case as Images
from benchmarks.mcmae_dense import DenseMCMAE
from benchmarks.pairs import Aim, Benchmark, Lap, Options, Row, race
from mimkit import encoders
from mimkit.data.batch import Batch
from mimkit.encoders.mcmae import VARIANTS, MCMAEEncoder
from mimkit.encoders.mcmae_view import view_of
from mimkit.engine.devices import autocast
from mimkit.engine.memory import keep_freed_memory
from mimkit.masks import Mask, RandomMasker
from mimkit.methods.mae import MAE
from mimkit.methods.mcmae import MCMAE
from mimkit.zoo.mcmae import PUBLISHED
from mimkit.zoo.rules import write

FULL, QUICK = Images("mcmae_base", 224, 16, 4), Images("mcmae_tiny", 64, 16, 2)
DECODER = (512, 8, 16)
AIMS = {"mcmae_step": 0.63, "mcmae_encoder": 0.50}
MEMORY = 0.62
STARTS = 3  # processes of each side


class Side(NamedTuple):
    """How one contender computes. what: the whole step, or the encoder in parts."""

    what: str
    precision: str
    options: Options
    weights: Path

    @property
    def case(self) -> Images:
        return QUICK if self.options.quick else FULL


def method(case: Images) -> MCMAE:
    """Ours, as the recipe `mcmae_base` builds it."""
    size = (case.size, case.size)
    return MCMAE(encoders.build(case.encoder, size=size), RandomMasker(RATIO, (16, 16)), size)


def dense(case: Images) -> DenseMCMAE:
    row = VARIANTS[case.encoder]
    units = (case.size // 16) ** 2
    return DenseMCMAE(row.widths, row.depths, row.mlp_ratios, row.heads, units, DECODER)


def drawn(side: Side) -> tuple[Tensor, Mask]:
    images, noise = inputs(side.case)
    device = torch.device(side.options.device)
    return images.to(device), mask_of(noise, side.case, 1.0).to(device)


def ours(side: Side) -> dict[str, Lap]:
    if side.options.device == "cpu":
        keep_freed_memory()
    model = method(side.case)
    model.load_state_dict(load_file(side.weights))
    model = model.to(side.options.device).train()
    images, mask = drawn(side)
    if side.what == "mcmae_step":
        batch = Batch(images, torch.arange(len(images)), mask)
        return {"time": lap(model, lambda: model(batch).total, side)}

    parts = {
        f"time_stage_{n}": lap(model, partial(front, model.encoder, images, mask, n), side) for n in (1, 2)
    }
    return parts | {"time": lap(model, lambda: model.encode(images, mask)[1].square().mean(), side)}


def front(encoder: nn.Module, images: Tensor, mask: Mask, stages: int) -> Tensor:
    """Mean square of the visible units behind stage 1 or 2."""
    assert isinstance(encoder, MCMAEEncoder)
    view = view_of(images, mask, None, encoder.masking, encoder.kernels, encoder.pack_up_to)
    x = view.cut(images)
    parts = (encoder.patch_embed1, encoder.blocks1), (encoder.patch_embed2, encoder.blocks2)
    for stage, (embed, blocks) in enumerate(parts[:stages]):
        x = embed(x)
        for block in blocks:
            x = block(x, view.seen[stage], view.windows[stage])
    return x.square().mean()


def theirs(side: Side) -> dict[str, Lap]:
    if side.options.device == "cpu":
        keep_freed_memory()
    model = dense(side.case)
    model.load_state_dict(published(load_file(side.weights)))
    model = model.to(side.options.device).train()
    images, mask = drawn(side)
    if side.what == "mcmae_step":
        return {"time": lap(model, lambda: model(images, mask.hidden, mask.visible), side)}

    def until(stages: int) -> Tensor:
        x = model.front(images, mask.hidden, stages)[1]  # (B, C, h, w)
        s = 16 // (4 * stages)
        visible = (~mask.hidden).repeat_interleave(s, 1).repeat_interleave(s, 2)[:, None]
        return (x * visible).square().sum() / (visible.sum() * x.shape[1])

    parts = {f"time_stage_{n}": lap(model, partial(until, n), side) for n in (1, 2)}
    whole = lap(model, lambda: model.latent(images, mask.hidden, mask.visible).square().mean(), side)
    return parts | {"time": whole}


def published(ours_: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the published names."""
    return write(PUBLISHED, ours_)


def mae(side: Side) -> dict[str, Lap]:
    """The step of our MAE on a ViT of the same last width."""
    if side.options.device == "cpu":
        keep_freed_memory()
    size = (side.case.size, side.case.size)
    encoder = encoders.build(side.case.encoder.replace("mcmae", "vit"), size=size, patch=(16, 16))
    model = MAE(encoder, RandomMasker(RATIO, (16, 16)), size).to(side.options.device).train()
    images, mask = drawn(side)
    batch = Batch(images, torch.arange(len(images)), mask)

    def step() -> None:
        model.zero_grad()
        with autocast(side.precision, torch.device(side.options.device)):
            loss = model(batch).total
        loss.backward()

    return {"time": step}


def lap(model: nn.Module, value: Any, side: Side) -> Lap:
    """Forward and backward of `value()`."""

    def run() -> float:
        model.zero_grad()
        with autocast(side.precision, torch.device(side.options.device)):
            result = value()
        result.backward()
        return result.item()

    return run


def rows(name: str, options: Options) -> list[Row]:
    """Time and memory in fp32 and bf16; the encoder split by stage."""
    found = []
    them, what = (mae, "mcmae_step") if name == "mcmae_over_mae" else (theirs, name)
    rounds, starts = options.laps(9), 1 if options.quick else STARTS
    for precision in ("fp32", "bf16"):
        with tempfile.TemporaryDirectory() as folder:
            side = Side(what, precision, options, weights(folder, options))
            tolerance = float("inf") if them is mae else 1e-5 if precision == "fp32" else 0.02
            result = race(
                partial(ours, side),
                partial(them, side),
                options,
                rounds,
                tolerance,
                train=(True, True),  # the dense form too, so that the allocator is no part of the race
                starts=starts,
            )
        settings = {
            "model": side.case.encoder,
            "size": side.case.size,
            "batch": side.case.images,
            "precision": precision,
            "device": options.device,
            "threads": options.threads,
            "rounds": len(result.laps["time"]),
            "starts": starts,
        }
        made = [result.time(name, settings, metric) for metric in result.laps] + [result.peak(name, settings)]
        found += [replace(row, metric=f"{row.metric}_{precision}") for row in made]
    return found


def weights(folder: str, options: Options) -> Path:
    """Random weights of ours, away from a start at which tokens and biases are zero."""
    torch.manual_seed(0)
    model = method(QUICK if options.quick else FULL)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".bias", "mask_token")):
                parameter.add_(0.02 * torch.randn_like(parameter))
    save_file(model.state_dict(), Path(folder) / "weights.safetensors")
    return Path(folder) / "weights.safetensors"


def _aims(time: float) -> dict[str, Aim]:
    both = ("fp32", "bf16")
    return {f"time_{p}": Aim(time) for p in both} | {f"peak_memory_{p}": Aim(MEMORY) for p in both}


BENCHMARKS = {
    "mcmae_step": Benchmark(
        "a MCMAE-B step, visible units against dense maps, fp32 and bf16",
        partial(rows, "mcmae_step"),
        _aims(AIMS["mcmae_step"]),
    ),
    "mcmae_encoder": Benchmark(
        "its encoder alone, forward and backward, up to each stage",
        partial(rows, "mcmae_encoder"),
        _aims(AIMS["mcmae_encoder"]),
    ),
    "mcmae_over_mae": Benchmark(
        "a MCMAE-B step against one of MAE-B, both ours (1.15 times the operations)",
        partial(rows, "mcmae_over_mae"),
        {},
    ),
}
