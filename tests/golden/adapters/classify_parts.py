"""The parts of MAE's transfer alone: LARS, Mixup and CutMix, losses, random erasing, the levels of RandAugment."""

import random
import re
from typing import Any

import numpy as np
import torch

from mimkit.data.erasing import NOTHING, Erasing
from mimkit.data.mixing import Mixing, smooth_targets
from mimkit.data.randaugment import NAMES, argument
from mimkit.engine.lars import LARS
from mimkit.engine.optimiser import set_lr
from mimkit.tasks.classify import cross_entropy

from ..runner import Case, Outputs


def lars(case: Case, dtype: torch.dtype) -> Outputs:
    got: dict[str, Any] = {}
    for name in case.output_names(r"loss_(\w+)"):
        decay = float(re.search(r"weight decay ([\d.]+)", case.said(name[0]))[1])
        got |= {f"{key}_{name[1]}": values for key, values in lars_steps(case, dtype, decay).items()}
    return got


def lars_steps(case: Case, dtype: torch.dtype, decay: float) -> dict[str, torch.Tensor]:
    """W, b, Z, C after each step, and the loss before it."""
    config = case.config
    a, b, y = (case.tensor(name, dtype) for name in "ABY")
    weights = {name: case.tensor(f"{name}0", dtype) for name in "WbC"}
    weights["Z"] = torch.zeros(y.shape[0], b.shape[0], dtype=dtype)
    for weight in weights.values():
        weight.requires_grad_()
    optimiser = LARS(
        weights.values(),
        momentum=config["momentum"],
        weight_decay=decay,
        trust=config["trust_coefficient"],
    )
    set_lr(optimiser, config["lr"])
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in (*weights, "loss")}
    for _ in range(config["steps"]):
        error = weights["W"] @ a + weights["b"][:, None] + weights["Z"] @ b - y
        loss = 0.5 * error.square().sum() + 0 * weights["C"].sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for name, weight in (*weights.items(), ("loss", loss)):
            rows[name].append(weight.detach().clone())
    return {name: torch.stack(values) for name, values in rows.items()}


class Legacy:
    """NumPy's legacy generator behind the names of the new ones."""

    def __init__(self, seed: int) -> None:
        self.state = np.random.RandomState(seed)
        self.beta, self.random = self.state.beta, self.state.random_sample
        self.integers = self.state.randint


def mixup_cutmix(case: Case, dtype: torch.dtype) -> Outputs:
    got: dict[str, Any] = {}
    labels = torch.from_numpy(case.input("labels"))
    for i, setting in enumerate(case.config["settings"]):
        mixing = Mixing(
            case.config["num_classes"],
            setting["mixup_alpha"],
            setting["cutmix_alpha"],
            setting["prob"],
            setting["switch_prob"],
            case.config["smoothing"],
            setting["mode"],
        )
        images, targets = mixing.apply(Legacy(setting["seed"]), case.tensor("image_i", dtype, i=i), labels)
        got |= {f"x_{i}": images[:, :1], f"target_{i}": targets}
    return got


def classification_losses(case: Case, dtype: torch.dtype) -> Outputs:
    smoothing, classes = case.config["smoothing"], case.config["num_classes"]
    logits, labels = case.tensor("logits", dtype), torch.from_numpy(case.input("labels"))
    soft = case.tensor("soft", dtype, lambda x: x / x.sum(1, keepdims=True))
    smooth = smooth_targets(labels, classes, smoothing)
    return {
        "soft_ce": cross_entropy(logits, soft),
        "smooth_ce": cross_entropy(logits, labels, smoothing),
        "smooth_target": smooth,
        "smooth_ce_as_soft": cross_entropy(logits, smooth),
    }


def random_erasing(case: Case, dtype: torch.dtype) -> Outputs:
    config = case.config
    area = config["min_area"], fraction(config["max_area"])
    aspect = config["min_aspect"], fraction(config["max_aspect"])
    rows = []
    for height, width, probability, seed in case.want["boxes"][:, :4].tolist():
        erasing = Erasing(probability, area, aspect)
        box = erasing.box(random.Random(int(seed)), (int(height), int(width)))
        rows.append([height, width, probability, seed, *(box if box != NOTHING else (-1, -1, 0, 0))])
    return {"boxes": rows}


def fraction(value: str | float) -> float:
    """0.3, "1/3" or "1/0.3"."""
    above, _, below = str(value).partition("/")
    return float(above) / float(below or 1)


def randaugment_levels(case: Case, dtype: torch.dtype) -> Outputs:
    short = {re.sub(r"(Increasing|Rel)$", "", name): name for name in case.config["order_of_operations"]}
    assert tuple(short) == NAMES
    return {
        name: [argument(ours, magnitude) for magnitude in case.config["magnitudes"]]
        for ours, name in short.items()
    }


FAMILIES = {
    "lars": (lars, True),
    "mixup_cutmix": (mixup_cutmix, True),
    "classification_losses": (classification_losses, True),
    "random_erasing": (random_erasing,),
    "randaugment_levels": (randaugment_levels,),
}
