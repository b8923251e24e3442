"""A MAE pre-training step (forward, loss, backward; He et al. 2022) against transformers' ViTMAEForPreTraining.

Both get the same weights (written to their names by the zoo's key rules: a fresh ViTMAE has empty position tables), the
same images and the same noise, and their losses must agree before anything is timed. Theirs runs with torch's fused
attention. Beside the times stands the share of the matrix-product floor that ours reaches: the step's operations at
the best rate measured for one large product.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.pairs import Aim, Benchmark, Lap, Options, Race, Row, race
from mimkit import encoders
from mimkit.analysis.cost import step_flops
from mimkit.data.batch import Batch
from mimkit.encoders.vit import VARIANTS
from mimkit.engine.devices import autocast, choose_precision, peak_flops
from mimkit.engine.memory import keep_freed_memory
from mimkit.masks import Mask, RandomMasker, from_hidden, visible_count
from mimkit.methods.mae import MAE
from mimkit.zoo import rules
from mimkit.zoo.mae import HUB

RATIO = 0.75


class Case(NamedTuple):
    """One model and one batch: encoder's name, image and patch sides in pixels, images."""

    encoder: str
    size: int
    patch: int
    images: int


class Side(NamedTuple):
    """How one contender computes. decode: share of the hidden patches that ours predicts."""

    case: Case
    precision: str
    options: Options
    weights: Path
    decode: float = 1.0


FULL, QUICK = Case("vit_base", 224, 16, 8), Case("vit_tiny", 64, 16, 2)


def method(case: Case, decode: float = 1.0) -> MAE:
    """Ours, as the recipe `mae_base` builds it."""
    patch, size = (case.patch, case.patch), (case.size, case.size)
    return MAE(encoders.build(case.encoder, size=size, patch=patch), RandomMasker(RATIO, patch, decode), size)


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) and noise (B, N), the same in every process."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(case.images, 3, case.size, case.size, generator=generator)
    return images, torch.rand(case.images, (case.size // case.patch) ** 2, generator=generator)


def mask_of(noise: Tensor, case: Case, decode: float) -> Mask:
    """What transformers makes of the noise (B, N): the patches with the least of it stay visible."""
    side = case.size // case.patch
    order = noise.argsort(dim=1)
    keep = visible_count(noise.shape[1], RATIO)
    hidden = torch.ones_like(noise, dtype=torch.bool).scatter(1, order[:, :keep], False)
    decoded = round(decode * (noise.shape[1] - keep))
    predict = order[:, keep : keep + decoded].sort(dim=1).values if decode < 1 else None
    return from_hidden(hidden.view(-1, side, side), (case.patch, case.patch), predict)


def our_step(side: Side) -> dict[str, Lap]:
    """As the engine takes it."""
    if side.options.device == "cpu":
        keep_freed_memory()
    model = method(side.case, side.decode)
    model.load_state_dict(load_file(side.weights))
    images, noise = inputs(side.case)
    batch = Batch(images, torch.arange(side.case.images), mask_of(noise, side.case, side.decode))
    device = torch.device(side.options.device)
    batch = batch.to(device)
    return _step(model.to(device), lambda: model(batch).total, side)


def their_step(side: Side) -> dict[str, Lap]:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    variant, case = VARIANTS[side.case.encoder], side.case
    fused: dict[str, Any] = {"attn_implementation": "sdpa"}
    config = ViTMAEConfig(
        hidden_size=variant.width,
        num_hidden_layers=variant.depth,
        num_attention_heads=variant.heads,
        intermediate_size=4 * variant.width,
        image_size=case.size,
        patch_size=case.patch,
        mask_ratio=RATIO,
        norm_pix_loss=True,
        layer_norm_eps=1e-6,
        **fused,
    )
    model: nn.Module = ViTMAEForPreTraining(config)
    names = next(family for family in HUB if family.name == "transformers 5 modules")
    model.load_state_dict(rules.write(names, load_file(side.weights)))
    device = torch.device(side.options.device)
    images, noise = (x.to(device) for x in inputs(case))
    return _step(model.to(device), lambda: model(pixel_values=images, noise=noise).loss, side)


def _step(model: nn.Module, loss_of: Callable[[], Tensor], side: Side) -> dict[str, Lap]:
    model.train()
    if side.options.compile:
        model.compile()
    device = torch.device(side.options.device)

    def lap() -> float:
        model.zero_grad()
        with autocast(side.precision, device):
            loss = loss_of()
        loss.backward()
        return loss.item()

    return {"time": lap}


def compare(options: Options, ours: str, theirs: str, decode: float = 1.0) -> tuple[Race, dict[str, Any]]:
    """The race between the two precisions, and its settings."""
    case, device = QUICK if options.quick else FULL, torch.device(options.device)
    ours, rounds = choose_precision(ours, device), options.laps(9)
    # the mean over half of the patches is another mean, and bf16 keeps 8 bits
    tolerance = 0.05 if decode < 1 else 1e-5 if ours == theirs == "fp32" else 0.01
    torch.set_num_threads(options.threads)
    rates = [peak_flops(device, ours)]  # on both sides of the race, since others may be busy on a CPU
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        torch.manual_seed(0)
        save_file(method(case).state_dict(), weights)
        sides = (Side(case, ours, options, weights, decode), Side(case, theirs, options, weights))
        result = race(
            partial(our_step, sides[0]),
            partial(their_step, sides[1]),
            options,
            rounds,
            tolerance,
            train=(True, False),
        )
    rates.append(peak_flops(device, ours))
    settings = {
        "model": case.encoder,
        "size": case.size,
        "batch": case.images,
        "precision": ours if ours == theirs else f"{ours} against {theirs}",
        "device": options.device,
        "compiled": options.compile,
        "threads": options.threads,
        "rounds": rounds,
    }
    return result, settings | _floor(case, decode, rates, result)


def _floor(case: Case, decode: float, rates: list[float | None], result: Race) -> dict[str, float]:
    """Seconds that the step's operations take at the device's best rate, and the share of it that ours reaches."""
    known = [rate for rate in rates if rate is not None]
    if not known:
        return {}
    work = step_flops(method(case, decode), (case.size, case.size)) * case.images
    floor = work / max(known)
    fastest = min(ours.seconds for ours, _ in result.laps["time"])
    return {"floor_s": round(floor, 3), "floor_share": round(floor / fastest, 2)}


def _step_rows(name: str, ours: str, theirs: str, options: Options) -> list[Row]:
    result, settings = compare(options, ours, theirs)
    return [result.time(name, settings), result.peak(name, settings)]


def _half_rows(options: Options) -> list[Row]:
    name, rows = "mae_step_half_decoded", []
    for precision in ("fp32", "bf16"):
        result, settings = compare(options, precision, precision, decode=0.5)
        for row in (result.time(name, settings), result.peak(name, settings)):
            rows.append(replace(row, metric=f"{row.metric}_{precision}"))
    return rows


def _pair(name: str, ours: str, theirs: str, limit: float, about: str) -> Benchmark:
    return Benchmark(about, partial(_step_rows, name, ours, theirs), {"time": Aim(limit)})


BENCHMARKS = {
    "mae_step_fp32": _pair(
        "mae_step_fp32", "fp32", "fp32", 0.97, "a MAE-B step against transformers, both fp32"
    ),
    "mae_step_bf16": _pair("mae_step_bf16", "bf16", "bf16", 0.85, "the same, both bf16"),
    "mae_step_default": _pair(
        "mae_step_default", "auto", "fp32", 0.33, "the same, our default precision against theirs (fp32)"
    ),
    "mae_step_half_decoded": Benchmark(
        "the same with half of the hidden patches decoded by ours, fp32 and bf16",
        _half_rows,
        {"time_fp32": Aim(0.82), "time_bf16": Aim(0.70)},
    ),
}
