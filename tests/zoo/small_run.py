"""Run folders as the engine writes them, of a ViT so small that everything about it takes milliseconds."""

import json
from pathlib import Path

import torch

from mimkit.engine import checkpoint
from mimkit.engine.ema import MovingAverage
from mimkit.engine.trainable import trainable_parameters
from mimkit.methods.base import Method
from mimkit.recipes import build, load
from mimkit.recipes.schema import Recipe
from mimkit.tasks import Task

SMALL = (
    "encoder.name=vit:32x2x4",
    "encoder.patch=4",
    "data.size=16",
    "data.channels=3",
    "data.mean=[0.4, 0.5, 0.6]",
    "data.std=[0.2, 0.25, 0.3]",
    "data.path=/home/somebody/secret/photos",
    "method.decoder.width=16",
    "method.decoder.depth=2",
    "method.decoder.heads=2",
    "train.batch_size=8",
    "train.micro_batch=8",
)
CLASSES = ("ant", "bee", "white wasp")
METRICS = {
    "loss": 0.5,
    "probe/knn_cls_layer1": 0.5,
    "probe/linear_mean_layer2": 0.875,
    "probe/linear_mean_layer2_std": 0.01,
}


def small_run(
    folder: Path, *overrides: str, step: int = 3, average: bool = False, bits: int | None = None
) -> tuple[Path, Method]:
    """A finished run in `folder` and its model; every tensor is random, tables too, so that nothing fits by chance.

    bits: of its images, as runs write it down; None: as old runs, which did not.
    """
    recipe = load.resolve("mae_base", [*SMALL, *overrides])
    method = randomised(recipe)
    kept = None
    if average:
        kept = MovingAverage(trainable_parameters(method), 0.5)
        for weight in kept.weights.values():
            weight.mul_(0.5)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(load.dump(recipe))
    extra = {} if bits is None else {"bits": bits}
    checkpoint.save(folder, checkpoint.State(step=step, images=8 * step, extra=extra), method, average=kept)
    rows = [{"step": i + 1, **METRICS} for i in range(step)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, method


def small_task(folder: Path, *overrides: str) -> tuple[Path, Task]:
    """A finished fine-tuning run in `folder` and its model."""
    kept = [text for text in SMALL if not text.startswith("method.")]
    recipe = load.resolve("finetune_vit_base", [*kept, *overrides])
    task = build.task(recipe, CLASSES).eval()
    for parameter in task.parameters():
        parameter.data.normal_(std=0.2)
    for name, buffer in task.named_buffers():
        if buffer.is_floating_point() and name in task.state_dict():  # others are computed
            buffer.uniform_(0.5, 1.5)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(load.dump(recipe))
    state = checkpoint.State(step=3, images=24, extra={"classes": list(CLASSES), "task": "classify"})
    checkpoint.save(folder, state, task)
    row = {"step": 3, "loss": 0.5, "val/top1": 0.75}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return folder, task


def randomised(recipe: Recipe) -> Method:
    torch.manual_seed(0)
    method = build.method(recipe).eval()
    for parameter in method.parameters():
        parameter.data.normal_(std=0.2)
    return method


def tokens(encoder: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """(B, prefix + N, C): everything that an encoder says."""
    features = encoder(images)
    level = features.levels[-1].flatten(1, -2)
    return level if features.prefix is None else torch.cat([features.prefix, level], dim=1)
