"""MAE's classifiers as a whole: fine-tuned ones, at other resolutions, linear probes, and the steps of both trainings.

Weights come from their published names through the zoo. Families: vit_ (any pooling, any grid; a probe where the
tensors hold one), finetune_, linprobe_head, linprobe_ (its steps).
"""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimkit.data.batch import Batch
from mimkit.data.mixing import smooth_targets
from mimkit.encoders.vit import ViT
from mimkit.engine.lars import LARS
from mimkit.engine.optimiser import adamw, layer_decay_groups, set_lr
from mimkit.engine.schedule import Schedule
from mimkit.tasks.classify import Classifier, cross_entropy, probe_head
from mimkit.zoo import recognise
from mimkit.zoo.load import load
from mimkit.zoo.rules import write
from mimkit.zoo.source import Weights

from ..runner import Case, Edit, Outputs, pair


def model_of(case: Case, dtype: torch.dtype, size: tuple[int, int] | None = None) -> Classifier:
    """The tiny classifier of a case for images of `size` (or of the weights' own), its weights read from the file."""
    config = case.config
    encoder = ViT(
        config["embed_dim"],
        config["depth"],
        config["num_heads"],
        patch=pair(config["patch_size"]),
        channels=config.get("in_chans", 3),
        size=size or pair(config["img_size"]),
        mlp_ratio=config.get("mlp_ratio", 4.0),
        eps=config["norm_eps"],
    )
    weights = case.weights(dtype)
    probe = any(name.startswith("head.1.") for name in weights)
    model = Classifier(
        encoder,
        [str(number) for number in range(config["num_classes"])],
        pooling="mean" if config["global_pool"] else "cls",
        probe=probe,
        eps=config["norm_eps"],
    )
    if probe:
        weights["head.0.num_batches_tracked"] = torch.tensor(0)  # "computed"
    load(model, Weights(weights, case.name))
    return model


def vit(case: Case, dtype: torch.dtype) -> Outputs:
    got: dict[str, Any] = {}
    for name in case.spec["inputs"]:
        images = case.tensor(name, dtype)
        model = model_of(case, dtype, (images.shape[2], images.shape[3])).eval()
        batch = Batch(images, torch.arange(len(images)))
        kind = name.removeprefix("image")
        got |= {f"features{kind}": model.features(batch), f"logits{kind}": model.predict(batch).logits}
    return got


def finetune(case: Case, dtype: torch.dtype) -> Outputs:
    config, family = case.config, recognise(case.tensors)[0]
    model = model_of(case, dtype)
    groups = layer_decay_groups(
        model, config["weight_decay"], config["layer_decay"], model.depth_of, model.layers
    )
    said = case.spec["shows"]
    betas = re.search(r"AdamW\(([\d.]+), ([\d.]+)\)", said).groups()
    share, smoothing = (float(n) for n in re.search(r"lambda ([\d.]+), smoothing ([\d.]+)", said).groups())
    optimiser = adamw(groups, (float(betas[0]), float(betas[1])))
    targets = smooth_targets(torch.tensor(config["labels"]), config["num_classes"], smoothing)
    soft = share * targets + (1 - share) * targets.flip(0)
    images = case.tensor("image", dtype)
    losses = train(
        model, optimiser, schedule_of(config), Batch(images, torch.arange(len(images)), targets=soft)
    )
    final = write(family, model.state_dict())
    names = [str(name) for name in case.want["names"]]
    assert set(names) == set(final)
    return {
        "loss": losses,
        "names": np.array(names),
        "final_sums": np.array([[final[n].sum().item(), final[n].abs().sum().item()] for n in names]),
    }


def schedule_of(config: dict[str, Any]) -> Schedule:
    return Schedule(
        config["lr"], config["epochs"], config["steps_per_epoch"], config["warmup_epochs"], config["min_lr"]
    )


def train(
    model: Classifier, optimiser: torch.optim.Optimizer, schedule: Schedule, batch: Batch
) -> list[float]:
    """The loss before each step on the same batch."""
    losses = []
    for step in range(schedule.steps):
        set_lr(optimiser, schedule.at(step))
        loss = model(batch).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def linprobe_head(case: Case, dtype: torch.dtype) -> Outputs:
    config = case.config
    head = probe_head(config["in_features"], config["num_classes"])
    assert (head[0].eps, head[0].momentum) == (config["eps"], config["momentum"])
    weights = {name.removeprefix("head."): tensor for name, tensor in case.weights(dtype).items()}
    head.load_state_dict(head.state_dict() | weights)
    got: dict[str, Any] = {}
    batches = [case.tensor(name, dtype, scaled(spec["edit"])) for name, spec in case.spec["inputs"].items()]
    for i, features in enumerate(batches):
        got |= {f"logits_train_{i}": head.train()(features)}
        got |= {
            f"running_{kind}_{i}": getattr(head[0], f"running_{kind}").clone() for kind in ("mean", "var")
        }
    return got | {"logits_eval": head.eval()(batches[0])}


def scaled(sentence: str) -> Edit:
    """'times 2 plus 1'."""
    factor, addend = (float(n) for n in re.fullmatch(r"times ([\d.]+) plus ([\d.]+)", sentence).groups())
    return lambda x: x * factor + addend


def linprobe_steps(case: Case, dtype: torch.dtype) -> Outputs:
    features, labels = case.tensor("features", dtype), torch.from_numpy(case.input("labels"))
    weight, bias = case.tensor("weight0", dtype), case.tensor("bias0", dtype)
    head = probe_head(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head[1].weight.copy_(weight)
        head[1].bias.copy_(bias)
    optimiser = LARS(head.parameters(), weight_decay=case.config.get("weight_decay", 0.0))
    schedule = schedule_of(case.config)
    losses: list[Tensor] = []
    for step in range(schedule.steps):
        set_lr(optimiser, schedule.at(step))
        losses.append(cross_entropy(head(features), labels))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    return {"loss": torch.stack(losses), "weight": head[1].weight, "bias": head[1].bias}


FAMILIES = {
    "vit_": (vit, True),
    "finetune_": (finetune, True),
    "linprobe_head": (linprobe_head, True),
    "linprobe_": (linprobe_steps, True),
}
