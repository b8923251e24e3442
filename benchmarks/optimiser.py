"""The optimiser's step: ours (AdamW, fused, in MAE's parameter groups) against torch's default AdamW.

111 M parameters: those of MAE with a ViT-B. A second metric adds what a training step does around it: the norm of the
gradient and, for ours, the flag that cancels a non-finite update; for theirs `clip_grad_norm_`.
"""

from functools import partial

import torch
from torch import nn

from benchmarks.mae_step import FULL, QUICK, method
from benchmarks.pairs import Aim, Benchmark, Lap, Options, Row, race
from mimkit.engine.optimiser import adamw, gradient_norms, pretrain_groups, set_lr, update

LR, DECAY, BETAS = 1e-4, 0.05, (0.9, 0.95)
CLIP = 1.0


def model_with_gradients(options: Options) -> nn.Module:
    """The same weights and gradients in every process."""
    torch.manual_seed(0)
    model = method(QUICK if options.quick else FULL).to(options.device)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter) * 1e-3
    return model


def ours(options: Options) -> dict[str, Lap]:
    model = model_with_gradients(options)
    optimiser = adamw(pretrain_groups(model, DECAY), BETAS)
    set_lr(optimiser, LR)
    parameters = [p for p in model.parameters() if p.grad is not None]

    def step() -> float:
        optimiser.step()
        return _sample(model)

    def step_with_norm() -> float:
        norm = torch.linalg.vector_norm(gradient_norms(parameters))
        update(optimiser, norm, torch.isfinite(norm), CLIP)
        return _sample(model)

    return {"time": step, "time_with_norm": step_with_norm}


def theirs(options: Options) -> dict[str, Lap]:
    model = model_with_gradients(options)
    parameters = [p for p in model.parameters() if p.grad is not None]
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=LR, betas=BETAS)

    def step() -> float:
        optimiser.step()
        return _sample(model)

    def step_with_norm() -> float:
        nn.utils.clip_grad_norm_(parameters, CLIP)
        return step()

    return {"time": step, "time_with_norm": step_with_norm}


def _sample(model: nn.Module) -> float:
    """A few weights' sum, to see that both do the same."""
    return (
        next(p for p in model.parameters() if p.ndim > 1 and p.requires_grad)
        .detach()
        .flatten()[:64]
        .sum()
        .item()
    )


def rows(options: Options) -> list[Row]:
    rounds = options.laps(15)
    result = race(partial(ours, options), partial(theirs, options), options, rounds, tolerance=1e-4)
    settings = {"model": "mae_base", "threads": options.threads, "device": options.device, "rounds": rounds}
    return [result.time("optimiser_step", settings, metric) for metric in result.laps]


BENCHMARKS = {
    "optimiser_step": Benchmark(
        "fused AdamW against torch's default, 111 M parameters", rows, {"time": Aim(0.2)}
    )
}
