"""The analyses on arrays: attention, kernels, CKA, spectra, AvgDist, rollout, colours, token norms."""

import math
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimkit.analysis import flow, geometry, hsic, kernels, measures, pca, spectrum
from mimkit.masks import avg_distance

from ..runner import Case, Outputs, pair


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def attention_distance(case: Case, dtype: torch.dtype) -> Outputs:
    grid, patch, prefix = (case.config[key] for key in ("grid", "patch", "prefix_tokens"))
    scores = case.tensor("logits", dtype)  # (B, H, N, N)
    apart = geometry.distances(grid, patch)
    own, mass = measures.without_prefix(scores.softmax(-1), prefix)
    per_query = measures.attention_distance(own, apart)
    streamed = meter(scores, geometry.whole(tuple(grid), tuple(patch)), prefix)
    return {
        "distance_matrix": apart,
        "per_query": per_query,
        "per_image_head": per_query.mean(-1),
        "head": streamed.mean("distance"),
        "layer": per_query.mean(),
        "not_renormalised": measures.attention_distance(own * mass[..., None], apart).mean((0, 2)),
        "patch_mass": streamed.mean("mass"),
    }


def meter(scores: Tensor, where: geometry.Geometry, prefix: int = 0, **options: Any) -> measures.Meter:
    """The stream fed in slices of three queries."""
    made = measures.Meter(where, prefix, **options)
    made.add(scores.split(3, dim=2))
    return made


def uniform_grid(case: Case, dtype: torch.dtype) -> Outputs:
    grids = case.config["grids"]
    return {
        "mean": [geometry.uniform_distance(grid) for grid in grids],
        "mean_excluding_self": [geometry.uniform_distance(grid, with_self=False) for grid in grids],
        "entropy": [geometry.whole(tuple(grid), (1, 1)).uniform()[1] for grid in grids],
    }


def window_attention(case: Case, dtype: torch.dtype) -> Outputs:
    config = case.config
    scores = case.tensor("logits", dtype).transpose(0, 1)  # (W, H, n, n)
    grid, window, stride = (pair(config[key]) for key in ("grid", "window", "stride_px"))
    got: dict[str, Any] = {}
    for name, shift in (("plain", (0, 0)), ("shifted", pair(config["shift"]))):
        where = geometry.windowed(grid, stride, window, shift)
        masked = scores - 100.0 * (where.region[:, None, :, None] != where.region[:, None, None]).to(dtype)
        streamed = meter(masked, where)
        naive = measures.attention_distance(masked.softmax(-1), geometry.distances(window, stride))
        got |= {
            f"{name}_head": streamed.mean("distance"),
            f"{name}_entropy": streamed.mean("entropy"),
            f"{name}_naive": naive.mean((0, 2)),
        }
    return got


def entropy_kl(case: Case, dtype: torch.dtype) -> Outputs:
    scores = case.tensor("logits", dtype)
    p = scores.softmax(-1)
    sharp = p.clone()
    sharp[0, :2, 0] = torch.eye(p.shape[-1], dtype=dtype)[:2]
    keys = scores.shape[-1]
    where = geometry.whole((1, keys), (1, 1))
    kl = meter(scores, where).mean("kl")
    heads = len(kl)
    return {
        "entropy": meter(scores, where).mean("entropy"),
        "entropy_of_mean": measures.entropy(p.mean((0, 2))),
        "kl_matrix": measures.kl_matrix(p),
        "kl_head": measures.per_head(kl),
        "kl_layer": measures.per_head(kl).mean(),
        "kl_layer_with_diagonal": kl.sum() / heads**2,
        "kl_matrix_eps": measures.kl_matrix(sharp, case.config["eps"]),
        "kl_layer_eps": measures.per_head(meter(sharp.log(), where).mean("kl")).mean(),
        "entropy_one_hot": measures.entropy(sharp)[0, 0, 0],
        "js_matrix": meter(scores, where, js=True).mean("js"),
    }


def attention_nmi(case: Case, dtype: torch.dtype) -> Outputs:
    return {"nmi": measures.attention_nmi(case.tensor("logits", dtype).softmax(-1))}


def kernel_family(case: Case, dtype: torch.dtype) -> Outputs:
    got: dict[str, Any] = {}
    for norm in kernels.NORMS:
        a = kernels.kernel_attention(case.tensor("kernel", dtype), norm)
        got |= {
            f"{norm}_distance": kernels.kernel_distance(a),
            f"{norm}_entropy": kernels.kernel_entropy(a),
            f"{norm}_kl": kernels.kernel_kl(a, case.config["eps"]),
        }
    return got


def cka(case: Case, dtype: torch.dtype) -> Outputs:
    x = case.tensor("X", dtype)
    y = x @ case.tensor("M", dtype) + numbers(case.config["Y"].split("+")[1])[0] * case.tensor("Y", dtype)
    size = case.config["batch"]
    pairs = ((x, y), (x, x), (y, y))
    batched = {name: summed(name, x.split(size), y.split(size)) for name in ("unbiased", "biased")}
    grams = [[hsic.gram(part)[0] for part in both] for both in pairs]
    parts = [
        [hsic.hsic_unbiased(hsic.gram(a)[0], hsic.gram(b)[0]) for a, b in zip(*two, strict=True)]
        for two in ((u.split(size), v.split(size)) for u, v in pairs)
    ]
    return {
        "linear": summed("biased", [x], [y]),
        "unbiased": summed("unbiased", [x], [y]),
        "minibatch_unbiased": batched["unbiased"],
        "minibatch_biased": batched["biased"],
        "hsic_biased": [hsic.hsic_biased(*two) for two in grams],
        "hsic_unbiased": [hsic.hsic_unbiased(*two) for two in grams],
        "hsic_unbiased_batches": np.mean(parts, axis=1),
    }


def summed(estimator: str, xs: Any, ys: Any, tokens: bool = False) -> float:
    """CKA of one layer each, block by block."""
    sums = hsic.Sums(estimator, tokens)
    for x, y in zip(xs, ys, strict=True):
        sums.add([x], [y])
    return float(sums.ratio([("a", ["x"]), ("b", ["y"])])[0, 0])


def cka_tokens(case: Case, dtype: torch.dtype) -> Outputs:
    x = case.tensor("X", dtype)
    x = x + torch.arange(x.shape[1], dtype=dtype)[:, None]
    y = x @ case.tensor("M", dtype) + case.tensor("Y", dtype)
    return {
        "flatten": summed("biased", [x], [y]),
        "tokens": summed("biased", [x], [y], tokens=True),
        "pooled": summed("biased", [x.mean(1)], [y.mean(1)]),
    }


def effective_rank(case: Case, dtype: torch.dtype) -> Outputs:
    factors = numbers(case.config["X"].split("*")[1])
    x = case.tensor("X", dtype) * torch.tensor(factors, dtype=dtype)
    covariance = spectrum.Covariance()
    covariance.add(x)
    singular = covariance.singular()
    return {
        "centred": covariance.effective_rank(),
        "raw": spectrum.effective_rank_of(torch.linalg.svdvals(x)),
        "eigen": spectrum.effective_rank_of(singular.square()),
        "participation": spectrum.participation_ratio(singular),
        "singular": singular,
        "stable_rank": spectrum.stable_rank(singular),
    }


def avgdist(case: Case, dtype: torch.dtype) -> Outputs:
    words = re.fullmatch(
        r"(\d+)x(\d+): 1 where \(row\+col\)%(\d+)==(\d+) or \(rows (\d+)\.\.(\d+) and cols (\d+)\.\.(\d+)\)",
        case.config["mask"],
    )
    height, width, step, rest, top, bottom, left, right = map(int, words.groups())
    row, column = np.indices((height, width))
    inside = (row >= top) & (row <= bottom) & (column >= left) & (column <= right)
    mask = ((row + column) % step == rest) | inside
    patch = case.config["patch"]
    rows = [[p, ratio, *drawn(int(p), ratio)] for p, ratio in case.want["table"][:, :2].tolist()]
    return {
        "mask": mask.astype(np.int64),
        "avgdist": avg_distance(mask, (patch, patch)),
        "avgdist_cells": avg_distance(mask),
        "table": rows,
    }


def drawn(patch: int, ratio: float, size: int = 192) -> tuple[float, int]:
    """(mean AvgDist over random masks, hidden patches): fewer masks where each has many patches."""
    side = size // patch
    hidden = math.ceil(ratio * side**2)
    rng = np.random.RandomState(patch)
    found = []
    for _ in range(max(6, min(200, 6000 // side**2))):
        mask = np.zeros(side**2, dtype=bool)
        mask[rng.permutation(side**2)[:hidden]] = True
        found.append(avg_distance(mask.reshape(side, side), (patch, patch)))
    return float(np.mean(found)), hidden


def rollout_family(case: Case, dtype: torch.dtype) -> Outputs:
    layers = list(case.tensor("logits", dtype).softmax(-1))
    rolled = flow.rollout(layers)
    return {
        "mean": rolled,
        "max": flow.rollout(layers, "max"),
        "cls_map": flow.rollout_map(rolled, 1),
    }


def pca_rgb(case: Case, dtype: torch.dtype) -> Outputs:
    factors = numbers(case.config["F"].split("*")[1])
    picture = pca.pca_rgb(case.tensor("F", dtype) * torch.tensor(factors, dtype=dtype))
    return {
        "components": picture.basis.components,
        "explained": picture.basis.explained,
        "rgb": picture.rgb,
        "foreground": picture.foreground,
    }


def token_norms(case: Case, dtype: torch.dtype) -> Outputs:
    maps = case.tensor("T", dtype)
    image, row, column, factor = map(int, numbers(case.config["T"].split("token")[1]))
    maps[image, row, column] *= factor
    norms = spectrum.token_norms(maps)
    amplitude = spectrum.amplitude(maps)
    return {
        "norms": norms,
        "threshold": spectrum.outlier_threshold(norms),
        "share": spectrum.outlier_share(norms),
        "amplitude": amplitude,
        "high_minus_low": spectrum.high_minus_low(amplitude),
    }


FAMILIES = {
    "attention_distance": (attention_distance, True),
    "uniform_grid": (uniform_grid, True),
    "window_attention": (window_attention, True),
    "entropy_kl": (entropy_kl, True),
    "attention_nmi": (attention_nmi, True),
    "kernels": (kernel_family, True),
    "cka": (cka, True),
    "cka_tokens": (cka_tokens, True),
    "effective_rank": (effective_rank, True),
    "avgdist": (avgdist,),
    "rollout": (rollout_family, True),
    "pca_rgb": (pca_rgb, True),
    "token_norms": (token_norms, True),
}
