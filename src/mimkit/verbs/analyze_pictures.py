"""The pictures of an analysis: attention maps of a patch, features as colours at several depths and strides, and what a
decoder paints into hidden patches at several ratios.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from mimkit import plots
from mimkit.analysis import viewer
from mimkit.analysis.inside import Study
from mimkit.analysis.layers import block_names, dense_features
from mimkit.analysis.maps import AttentionMaps, attention_maps
from mimkit.analysis.pca import pca_rgb
from mimkit.analysis.subjects import attention_sites
from mimkit.data.normalise import denormalise
from mimkit.errors import DataError, UserError
from mimkit.plots.images import HIDDEN
from mimkit.plots.sheets import evenly, of_rows
from mimkit.verbs.analyze_models import Sample, left_out
from mimkit.verbs.watch import usual_masks

HEADS = 8  # columns of a sheet of attention maps
SHOWN = 4  # images in a sheet of features
PAINTED = 3  # images in a gallery
DEPTHS = 4  # layers in a sheet of features, besides the last behind its norm
FINAL = "final"
Row = list[np.ndarray | None]


def pictures(
    samples: Sequence[Sample], study: Study, wanted: Sequence[str], count: Callable[[], None]
) -> dict[str, Any]:
    """The sheets, the maps for the page's viewer and notes of what was left out, as fields of a Study."""
    sheets: list[plots.Sheet] = []
    packed: list[dict[str, Any]] = []
    notes = list(study.notes)
    for number, sample in enumerate(samples):
        for name, make in (("maps", _maps), ("features", _features), ("gallery", _gallery)):
            if name not in wanted:
                continue
            try:
                made, maps = make(sample, number, len(samples))
            except (UserError, DataError) as error:
                notes.append(left_out(sample, name, error))
                continue
            sheets += made
            packed += maps
        count()
    return {"sheets": tuple(sheets), "viewer": packed, "notes": tuple(notes)}


Made = tuple[list[plots.Sheet], list[dict[str, Any]]]


def _maps(sample: Sample, number: int, models: int) -> Made:
    """Every query of some layers for the page's viewer, and the middle one's maps as a sheet."""
    subject = sample.subject
    sites = attention_sites(subject.module)
    if not sites:
        return [], []
    grids = viewer.layouts(sites, subject.size)
    choice = viewer.choose(grids, models)
    if choice is None:
        raise UserError(f"Its finest map has more than {viewer.KEYS} patches in every layer.")
    batch, pixels, names = sample.few(choice.images)
    maps = attention_maps(subject.module, batch.images, [layer + 1 for layer in choice.layers])
    images = [plots.rgb(image) for image in pixels]
    sheet = _map_sheet(f"attention-maps-{number}", subject.label, maps, choice.layers, images[0])
    return [sheet], [viewer.pack(subject.label, maps, choice, images, names)]


def _map_sheet(
    name: str, label: str, maps: AttentionMaps, layers: Sequence[int], image: np.ndarray
) -> plots.Sheet:
    most = max(layer.attention.shape[1] for layer in maps.layers)
    heads = evenly(most, HEADS)
    rows: list[Row] = []
    for layer in maps.layers:
        query = (layer.grid[0] // 2, layer.grid[1] // 2)
        own = layer.of(query)[0].numpy()  # (H, h, w)
        cells: Row = [plots.heat(own[head]) if head < len(own) else None for head in heads]
        rows.append([None if rows else outlined(image, layer.grid, query), *cells])
    columns = ("image", *(f"head {head}" for head in heads))
    titles = tuple(f"layer {number + 1}" for number in layers)
    return plots.Sheet(name, f"Attention of the middle patch, {label}", columns, titles, of_rows(rows))


def outlined(image: np.ndarray, grid: tuple[int, int], query: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) with a white frame around the patch `query` of `grid`."""
    shown = image.copy()
    height, width = (side / count for side, count in zip(image.shape[:2], grid, strict=True))
    top, left = round(query[0] * height), round(query[1] * width)
    low, right = round((query[0] + 1) * height), round((query[1] + 1) * width)
    thick = max(1, image.shape[0] // 112)
    shown[top:low, left:right] = 1.0
    inner = (slice(top + thick, low - thick), slice(left + thick, right - thick))
    shown[inner] = image[inner]
    return shown


def _features(sample: Sample, number: int, models: int) -> Made:
    """Some layers and the last one behind its norm as colours, fitted over the images together."""
    subject = sample.subject
    batch, pixels, names = sample.few(SHOWN)
    blocks = block_names(subject.module)
    shown = evenly(len(blocks), DEPTHS)
    features = dense_features(subject.module, batch.images, [blocks[i] for i in shown])
    titles = {blocks[i]: f"layer {i + 1}" for i in shown} | {FINAL: "last, behind the norm"}
    columns, cells = ["image"], [[plots.rgb(image) for image in pixels]]
    for key, found in features.items():
        stride = subject.size[0] / found.shape[1]
        columns.append(f"{titles[key]}, stride {stride:g}")
        cells.append(list(pca_rgb(found).rgb.float().numpy()))
    rows: list[Row] = [[column[i] for column in cells] for i in range(len(names))]
    title = f"Features as colours, {subject.label}"
    return [plots.Sheet(f"features-{number}", title, tuple(columns), tuple(names), of_rows(rows))], []


@torch.no_grad()
def _gallery(sample: Sample, number: int, models: int) -> Made:
    """What a trained decoder paints at the usual ratios that the grid can hold; nothing for models without one."""
    opened = sample.subject.opened
    if opened is None or opened.method is None or opened.decoder is not None:
        return [], []
    method = opened.method.to(sample.runner.device)
    batch, pixels, names = sample.few(PAINTED)
    part = opened.recipe.data
    assert part.mean is not None and part.std is not None
    columns, cells = ["image"], [[plots.rgb(image) for image in pixels]]
    for ratio, mask in usual_masks(method, batch.images).items():
        shown = method.reconstruct(batch.images, mask)
        painted = denormalise(shown.pasted, part.mean, part.std).permute(0, 2, 3, 1).cpu().numpy()
        hidden = shown.hidden[:, 0].cpu().numpy()[..., None]  # (B, H, W, 1)
        columns += [f"{ratio:.0%} hidden", "painted"]
        masked = np.where(hidden, HIDDEN, pixels)
        cells += [[plots.rgb(image) for image in masked], [plots.rgb(image) for image in painted]]
    rows: list[Row] = [[column[i] for column in cells] for i in range(len(names))]
    title = f"Reconstructions, {sample.subject.label}"
    sheet = plots.Sheet(f"gallery-{number}", title, tuple(columns), tuple(names), of_rows(rows), crisp=False)
    return [sheet], []
