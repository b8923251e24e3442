"""A fine-tuning step of a ViT-B (forward, loss, backward; MAE, He et al. 2022, appendix A.1) against timm's model.

Both classify by the mean of the patches with a norm behind it, drop paths up to 0.1, and learn soft targets as Mixup
makes them. They get the same weights (written to timm's names by the zoo's key rules), images and targets. Which
samples lose a path is drawn by each for itself, so what must agree before anything is timed is the loss in fp32 with
all paths kept.
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

from benchmarks.mae_step import FULL, QUICK, Case
from benchmarks.pairs import Aim, Benchmark, Lap, Options, Row, race
from mimkit import encoders
from mimkit.data.batch import Batch
from mimkit.data.mixing import Mix, mix_images, smooth_targets
from mimkit.engine.devices import autocast, choose_precision
from mimkit.engine.memory import keep_freed_memory
from mimkit.tasks.classify import Classifier
from mimkit.zoo import rules
from mimkit.zoo.export import TIMM_ARCHITECTURES
from mimkit.zoo.mae import PUBLISHED

CLASSES, DROP_PATH, SMOOTHING, BLEND = 1000, 0.1, 0.1, 0.7
HEAD_STD = 0.02  # large enough that the loss depends on the features


class Side(NamedTuple):
    """How one contender computes."""

    case: Case
    precision: str
    options: Options
    weights: Path


def classifier(case: Case) -> Classifier:
    """Ours, as the recipe `finetune_vit_base` builds it."""
    size, patch = (case.size, case.size), (case.patch, case.patch)
    encoder = encoders.build(case.encoder, size=size, patch=patch, drop_path=DROP_PATH)
    return Classifier(encoder, [str(number) for number in range(CLASSES)])


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    """Blended images (B, 3, H, W) and their soft targets (B, classes), the same in every process."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(case.images, 3, case.size, case.size, generator=generator)
    labels = torch.randint(CLASSES, (case.images,), generator=generator)
    hard = smooth_targets(labels, CLASSES, SMOOTHING)
    share = torch.full((case.images,), BLEND).double().numpy()
    mix = Mix(share, share, torch.zeros(case.images, 4, dtype=torch.int64).numpy())
    return mix_images(images, mix), BLEND * hard + (1 - BLEND) * hard.flip(0)


def our_step(side: Side) -> dict[str, Lap]:
    """As the engine takes it."""
    if side.options.device == "cpu":
        keep_freed_memory()
    model = classifier(side.case)
    model.load_state_dict(load_file(side.weights))
    device = torch.device(side.options.device)
    images, targets = inputs(side.case)
    batch = Batch(images, torch.arange(side.case.images), targets=targets).to(device)
    return _step(model.to(device), lambda: model(batch).total, side)


def their_step(side: Side) -> dict[str, Lap]:
    import timm
    from timm.loss import SoftTargetCrossEntropy

    case, device = side.case, torch.device(side.options.device)
    model: nn.Module = timm.create_model(
        TIMM_ARCHITECTURES[case.encoder],
        img_size=case.size,
        patch_size=case.patch,
        num_classes=CLASSES,
        global_pool="avg",
        drop_path_rate=DROP_PATH,
    )
    model.load_state_dict(rules.write(PUBLISHED, load_file(side.weights)))
    model.to(device)
    images, targets = (x.to(device) for x in inputs(case))
    criterion = SoftTargetCrossEntropy()
    return _step(model, lambda: criterion(model(images), targets), side)


def _step(model: nn.Module, loss_of: Callable[[], Tensor], side: Side) -> dict[str, Lap]:
    """The lap; it gives the loss that the model had when it was built, with all its paths."""
    with torch.no_grad():
        whole = float(loss_of_all(model, loss_of))
    if side.options.compile:
        model.compile()
    device = torch.device(side.options.device)

    def lap() -> float:
        model.zero_grad()
        with autocast(side.precision, device):
            loss = loss_of()
        loss.backward()
        return whole

    return {"time": lap}


def loss_of_all(model: nn.Module, loss_of: Callable[[], Tensor]) -> Tensor:
    """The loss in evaluation mode, in which no path is dropped; the model trains from then on."""
    model.eval()
    loss = loss_of()
    model.train()
    return loss


def rows(options: Options) -> list[Row]:
    """Time and peak memory in fp32 and in bf16, both sides alike."""
    made: list[Row] = []
    case, device = QUICK if options.quick else FULL, torch.device(options.device)
    rounds = options.laps(9)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        torch.manual_seed(0)
        model = classifier(case)
        nn.init.normal_(model.get_parameter("head.weight"), std=HEAD_STD)
        save_file(model.state_dict(), weights)
        del model
        for precision in ("fp32", "bf16"):
            side = Side(case, choose_precision(precision, device), options, weights)
            result = race(
                partial(our_step, side), partial(their_step, side), options, rounds, 1e-5, train=(True, False)
            )
            settings: dict[str, Any] = {
                "model": case.encoder,
                "size": case.size,
                "batch": case.images,
                "drop path": DROP_PATH,
                "device": options.device,
                "compiled": options.compile,
                "threads": options.threads,
                "rounds": rounds,
            }
            for row in (result.time("finetune_step", settings), result.peak("finetune_step", settings)):
                made.append(replace(row, metric=f"{row.metric}_{precision}"))
    return made


BENCHMARKS = {
    "finetune_step": Benchmark(
        "a fine-tuning step of a ViT-B against timm's, drop path 0.1, soft targets, fp32 and bf16",
        rows,
        {"time_fp32": Aim(1.0), "time_bf16": Aim(1.0)},
    )
}
