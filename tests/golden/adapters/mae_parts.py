"""The parts of MAE alone: tables, masks, patches, loss, schedule, stochastic depth, k-NN, the evaluation view.

Many outputs say in their names and sentences which sizes they are of ("d16_3x5_cls", "rect_4_to_2x8"): these are read
from there.
"""

import math
import random
import re
from typing import Any

import numpy as np
import torch

from mimkit import masks
from mimkit.analysis.classify import knn_classify
from mimkit.data.augment import evaluation_size, resize_centre
from mimkit.data.normalise import normalise
from mimkit.engine.schedule import learning_rate, peak_lr
from mimkit.errors import UserError
from mimkit.masks import hide_blocks, hide_off_grid, keep_by_noise
from mimkit.methods.mae import patch_errors, patch_targets
from mimkit.ops import units
from mimkit.ops.attention import drop_path, drop_path_rates
from mimkit.ops.positions import resize_table, sincos, sincos_axis

from ..runner import Case, Outputs, pair, ranks

STATISTICS_SEED, STATISTICS_DRAWS = 123, 2000  # of block_masking's table; the case does not name the seed


def mae_loss(case: Case, dtype: torch.dtype) -> Outputs:
    images, predicted = case.tensor("image", dtype), case.tensor("pred", dtype)
    removed = torch.from_numpy(case.input("mask")).bool()
    target = units.patchify(images, pair(case.config["patch_size"]))
    normed, _, _ = patch_targets(target)
    got: dict[str, Any] = {}
    for kind, wanted in (("raw", target), ("norm", normed)):
        errors = patch_errors(predicted, wanted)  # (N, L)
        got |= {f"per_patch_{kind}": errors, f"loss_{kind}": errors[removed].mean()}
    first = case.want["target_norm_first"].shape[1] if "target_norm_first" in case.want else 0
    return got | {"target_norm_first": normed[:, :first]}


def sincos_pos_embed(case: Case, dtype: torch.dtype) -> Outputs:
    got: dict[str, Any] = {}
    temperature = case.config.get("temperature", 10000)
    assert temperature == 10000, "tables of images have one temperature"
    for name in case.output_names(r"d(\d+)_(\d+)x(\d+)_?(cls|sum|rows)?"):
        width, h, w = (int(number) for number in name.groups()[:3])
        table = sincos(width, (h, w), class_row=name[4] is not None)[0].to(dtype)
        if name[4] == "sum":
            table = torch.stack([table.sum(), table.abs().sum()])
        elif name[4] == "rows":
            table = table[[0, 1, 2, w, w + 1, h * w], :: width // 16]
        got[name[0]] = table
    for name in case.output_names(r"d1d_(\d+)"):
        places = re.search(r"positions ([\d., ]+)", case.said(name[0]))[1]
        positions = torch.tensor([float(place) for place in places.split(",")], dtype=torch.float64)
        got[name[0]] = sincos_axis(int(name[1]), positions)
    return got


def pos_interpolation(case: Case, dtype: torch.dtype) -> Outputs:
    got = {}
    given = case.tensor("table", dtype)
    for name in case.output_names(r"([a-z]+)_(\d+x\d+|\d+)(?:_to_(\d+x\d+|\d+))?"):
        old, new = ([int(n) for n in side.split("x")] * 2 for side in (name[2], name[3] or name[2]))
        old, new = old[:2], new[:2]
        table, prefix = given, given.shape[1] - math.prod(old)
        if name[1] == "sincos":
            table, prefix = sincos(case.want[name[0]].shape[-1], old, class_row=True).to(dtype), 1
        elif name[1] == "noextra":
            table, prefix = given[:, prefix:], 0
        resized = resize_table(table, old, new, prefix)
        rows = re.search(r"rows ([\d, ]+\d)", case.said(name[0]))
        got[name[0]] = resized[:, [int(row) for row in rows[1].split(",")]] if rows else resized
    return got


def random_masking(case: Case, dtype: torch.dtype) -> Outputs:
    got: dict[str, Any] = {}
    for i, (cells, ratio) in enumerate(case.config["combos"]):
        noise, x = case.input(f"noise_{i}"), case.tensor(f"x_{i}", dtype)
        keep = torch.from_numpy(keep_by_noise(noise, masks.kept(cells, ratio)))
        got |= {f"ids_keep_{i}": keep, f"ids_restore_{i}": ranks(noise)}
        got[f"x_masked_{i}"] = units.take(x, keep)
        got[f"mask_{i}"] = torch.ones(noise.shape).scatter(1, keep, 0)
    if "len_keep_table" in case.want:
        table = case.want["len_keep_table"]
        got["len_keep_table"] = [[cells, ratio, count_of(int(cells), ratio)] for cells, ratio, _ in table]
    return got


def count_of(cells: int, ratio: float) -> int:
    """The number that stays, through the function that refuses none and all."""
    try:
        return masks.visible_count(cells, ratio)
    except UserError as refusal:
        return 0 if "nothing visible" in str(refusal) else cells


def patchify(case: Case, dtype: torch.dtype) -> Outputs:
    got = {}
    patch = pair(case.config["patch_size"])
    for name in case.spec["inputs"]:
        images = case.tensor(name, dtype)
        patches = units.patchify(images, patch)
        grid = (images.shape[2] // patch[0], images.shape[3] // patch[1])
        assert torch.equal(units.unpatchify(patches, grid, patch), images)
        got[name.replace("image", "patches")] = patches
    return got


def lr_schedule(case: Case, dtype: torch.dtype) -> Outputs:
    got = {}
    for name, c in case.config.items():
        lr = peak_lr(c["blr"], c["effective_batch"])
        assert lr == c["lr"] or math.isclose(lr, c["lr"])
        scale = eval_power(re.search(r"lr_scale ([\d.*]+)", case.said(name))[1])
        rows = []
        for epoch in case.want[name][:, 0]:  # the column that is input
            rate = learning_rate(epoch, lr, c["min_lr"], c["warmup_epochs"], c["epochs"])
            rows.append([epoch, rate, rate * scale])
        got[name] = rows
    return got


def eval_power(text: str) -> float:
    """'0.65**13' or '0.65'."""
    base, _, exponent = text.partition("**")
    return float(base) ** float(exponent or 1)


def drop_path_case(case: Case, dtype: torch.dtype) -> Outputs:
    x, noise = case.tensor("x", dtype), case.tensor("u", dtype)
    got: dict[str, Any] = {}
    for name in case.output_names(r"out_([\d.]+)"):
        got[name[0]] = drop_path(x, float(name[1]), noise)
    for name in case.output_names(r"rates_(\d+)"):
        depth, highest = re.search(r"depth (\d+), maximum ([\d.]+)", case.said(name[0])).groups()
        got[name[0]] = drop_path_rates(float(highest), int(depth))
    return got


def block_masking(case: Case, dtype: torch.dtype) -> Outputs:
    got: dict[str, Any] = {}
    for i, c in enumerate(case.config["cases"]):
        rng = random.Random(c["seed"])
        drawn = case.want[f"mask_{i}"].shape[0]
        got[f"mask_{i}"] = np.stack([hide(rng, c) for _ in range(drawn)])
    if "statistics" in case.want:
        got["statistics"] = block_statistics(case)
    return got


def hide(rng: random.Random, c: dict[str, int]) -> np.ndarray:
    return hide_blocks(rng, (c["h"], c["w"]), c["num_masking"], c["min_num_patches"])


def block_statistics(case: Case) -> list[list[float]]:
    """Columns: h, w, target, mean count, min, max, share that reaches it, neighbours hidden too, the same by chance."""
    rows = []
    smallest = {(c["h"], c["w"], c["num_masking"]): c["min_num_patches"] for c in case.config["cases"]}
    for h, w, count in case.want["statistics"][:, :3].astype(int).tolist():
        rng = random.Random(STATISTICS_SEED)
        drawn = [hide_blocks(rng, (h, w), count, smallest[h, w, count]) for _ in range(STATISTICS_DRAWS)]
        counts = np.array([mask.sum() for mask in drawn])
        spread = [counts.mean(), counts.min(), counts.max(), (counts == count).mean()]
        rows.append(
            [h, w, count, *spread, np.mean([neighbours(m) for m in drawn]), (count - 1) / (h * w - 1)]
        )
    return rows


def neighbours(hidden: np.ndarray) -> float:
    """Share of (hidden cell, its right or lower neighbour) pairs where the neighbour is hidden too."""
    both = (hidden[:, :-1] & hidden[:, 1:]).sum() + (hidden[:-1] & hidden[1:]).sum()
    return both / (hidden[:, :-1].sum() + hidden[:-1].sum())


def grid_masking(case: Case, dtype: torch.dtype) -> Outputs:
    return {
        name[0]: hide_off_grid((int(name[1]), int(name[2])))
        for name in case.output_names(r"mask_(\d+)x(\d+)")
    }


def knn_probe(case: Case, dtype: torch.dtype) -> Outputs:
    classes, temperature = case.config["num_classes"], case.config["temperature"]
    centres = case.input("centres")
    sets = {}
    for kind in ("train", "test"):
        labels = np.arange(case.spec["inputs"][kind]["shape"][0]) % classes  # "i mod 6"
        shifted = case.input(kind, lambda x, labels=labels: x + 0.4 * centres[labels])
        sets[kind] = torch.from_numpy(shifted).to(dtype), torch.from_numpy(labels)
    (train, known), (test, answers) = sets["train"], sets["test"]
    got: dict[str, Any] = {}
    for k in case.config["k"]:
        neighbours_, scores, ranking = knn_classify(train, known, test, classes, k, temperature)
        right = ranking == answers[:, None]
        accuracy = [right[:, :n].any(1).double().mean().item() for n in (1, 5)]
        got |= {
            f"neighbours_{k}": neighbours_,
            f"scores_{k}": scores,
            f"ranking_{k}": ranking,
            f"acc_{k}": accuracy,
        }
    return got


def eval_transform(case: Case, dtype: torch.dtype) -> Outputs:
    config = case.config
    size = pair(config["input_size"])
    image = case.input("image", lambda x: (x * 256).astype(np.uint8))
    pixels = normalise(resize_centre(image, size)[None], config["mean"], config["std"])[0]
    assert evaluation_size(size) == pair(config["resize"])
    sizes = case.want["resize_size"][:, 0].tolist() if "resize_size" in case.want else []
    crops = case.want["probe_crop"][:, :4].tolist() if "probe_crop" in case.want else []
    return {
        "pixels": pixels[:, ::2, ::2],
        "pixels_sum": [pixels.sum().item(), pixels.abs().sum().item()],
        "resize_size": [[side, evaluation_size(pair(side))[0]] for side in sizes],
        "probe_crop": [probe_crop(*row) for row in crops],
    }


def probe_crop(height: float, width: float, area: float, aspect: float) -> list[float]:
    """The crop of linear-probe training as the sheet words it (section 5); mimkit trains its probes on one view."""
    pixels = height * width * area
    h, w = round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))
    return [height, width, area, aspect, min(h, height), min(w, width)]


FAMILIES = {
    "mae_loss": (mae_loss, True),
    "sincos_pos_embed": (sincos_pos_embed, True),
    "pos_interpolation": (pos_interpolation, True),
    "random_masking": (random_masking,),
    "patchify": (patchify,),
    "lr_schedule": (lr_schedule,),
    "drop_path": (drop_path_case, True),
    "block_masking": (block_masking,),
    "grid_masking": (grid_masking,),
    "knn_probe": (knn_probe, True),
    "eval_transform": (eval_transform,),
}
