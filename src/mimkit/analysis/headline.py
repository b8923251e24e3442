"""The few numbers that stand on top of the analysis: a row a model, the low and the high third of its layers."""

from collections.abc import Callable, Sequence

import numpy as np

from mimkit.analysis.inside import Inspection, Study

NONE = "–"
Cell = Callable[[Inspection], str]


def headline(study: Study) -> tuple[list[str], list[list[str]]]:
    """(heads, a row of texts a model); a column that no model has a number for is left out."""
    rows = [[cell(model) for _, cell in COLUMNS] for model in study.models]
    kept = [i for i in range(len(COLUMNS)) if any(row[i] != NONE for row in rows)]
    names = [name.format(cka=_title(study)) for name, _ in COLUMNS]
    return [names[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _title(study: Study) -> str:
    """Which CKA; the same for all models."""
    return next((model.cka.kind.title for model in study.models if model.cka is not None), "CKA")


def thirds(values: Sequence[float]) -> tuple[float, float]:
    """Means of the first and of the last third of the layers."""
    count = max(1, len(values) // 3)
    return float(np.mean(values[:count])), float(np.mean(values[-count:]))


def _thirds(metric: str, form: str) -> Cell:
    def cell(model: Inspection) -> str:
        if model.attention is None:
            return NONE
        means = [float(np.mean(layer.by_head()[metric])) for layer in model.attention.layers]
        known = [value for value in means if np.isfinite(value)]
        if not known:
            return NONE
        low, high = thirds(known)
        return f"{low:{form}} → {high:{form}}"

    return cell


def _size(model: Inspection) -> str:
    return f"{model.size[0]} × {model.size[1]}"


def _parameters(model: Inspection) -> str:
    return f"{model.parameters / 1e6:.1f} M"


def _layers(model: Inspection) -> str:
    blocks = model.layers or model.attention or model.kernels
    if blocks is None:
        return NONE
    attending = None if model.attention is None else len(model.attention.layers)
    return f"{len(blocks.layers)}" + (
        f" ({attending} attend)" if attending not in (None, len(blocks.layers)) else ""
    )


def _kernels(model: Inspection) -> str:
    if model.kernels is None:
        return NONE
    low, high = thirds([float(layer.distance.mean()) for layer in model.kernels.layers])
    return f"{low:.1f} → {high:.1f}"


def _cka(model: Inspection) -> str:
    if model.cka is None or len(model.cka.layers_a) < 2:
        return NONE
    values = model.cka.values.copy()
    np.fill_diagonal(values, np.inf)
    row, column = np.unravel_index(int(np.argmin(values)), values.shape)
    return f"{values[row, column]:.2f} ({row + 1}, {column + 1})"


def _rank(model: Inspection) -> str:
    if model.layers is None:
        return NONE
    last = model.layers.layers[-1]
    return f"{last.effective_rank:.0f} of {len(last.singular)}"


def _probe(model: Inspection) -> str:
    return (
        NONE if model.probes is None else f"{model.probes.best.percent} % (layer {model.probes.best.layer})"
    )


COLUMNS: tuple[tuple[str, Cell], ...] = (
    ("model", lambda model: model.label),
    ("input (px)", _size),
    ("parameters", _parameters),
    ("layers", _layers),
    ("distance (px)", _thirds("distance", ".0f")),
    ("distance / uniform", _thirds("relative_distance", ".2f")),
    ("entropy / uniform", _thirds("relative_entropy", ".2f")),
    ("KL of heads (nats)", _thirds("kl", ".2f")),
    ("kernel distance (px)", _kernels),
    ("lowest {cka} (layers)", _cka),
    ("effective rank, last", _rank),
    ("best probe", _probe),
)
