"""The analyses of one model, one after the other, and what the rules say about all of them.

What a model does not allow (attention of a convolutional network, a layout that the analysis does not know) becomes a
note beside its results; it never stops the others.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mimkit.analysis.attention import attention_statistics
from mimkit.analysis.cost import parameters
from mimkit.analysis.inside import Inspection, Study
from mimkit.analysis.kernels import is_depthwise, kernel_statistics
from mimkit.analysis.layers import Layered, by_blocks
from mimkit.analysis.probe import probe
from mimkit.analysis.report import read_run
from mimkit.analysis.similarity import CKA, USUAL, Kind, cka
from mimkit.analysis.spectrum import layer_statistics
from mimkit.analysis.subjects import attention_sites
from mimkit.analysis.verdicts import Finding, compare, mask_advice, representation, sentences
from mimkit.engine.run_folder import METRICS
from mimkit.errors import DataError, UserError
from mimkit.masks import mean_avg_distance
from mimkit.verbs.analyze_models import Sample, Subject, left_out

FOLDS = 5
RECIPE = "recipe.yaml"


def _attention(sample: Sample) -> dict[str, Any]:
    subject = sample.subject
    if not attention_sites(subject.module):
        return {}
    return {"attention": attention_statistics(subject.module, sample, subject.label)}


def _kernels(sample: Sample) -> dict[str, Any]:
    subject = sample.subject
    if not any(is_depthwise(part) for part in subject.module.modules()):
        return {}
    found = kernel_statistics(subject.module, subject.label)
    return {"kernels": found} if found.layers else {}


def _cka(sample: Sample, kind: Kind = USUAL) -> dict[str, Any]:
    return {"cka": cka_of(sample, sample, kind)}


def cka_of(first: Sample, other: Sample, kind: Kind) -> CKA:
    """CKA between two models, or within one."""
    a, b = first.subject, other.subject
    words = (kind.examples, kind.estimator, kind.block)
    second = None if other is first else other  # one model reads its images once
    return cka(a.module, b.module, first, *words, names=(a.label, b.label), loader_b=second)


def _layers(sample: Sample) -> dict[str, Any]:
    return {"layers": layer_statistics(sample.subject.module, sample, sample.subject.label)}


def _probes(sample: Sample) -> dict[str, Any]:
    subject = sample.subject
    encoder = Layered(subject.module) if subject.encoder is None else by_blocks(subject.encoder)
    torch.manual_seed(subject.recipe.train.seed)
    every = range(1, encoder.depth + 1)
    table = probe(
        encoder,
        sample,
        layers=list(every),
        poolings=("mean",),
        folds=FOLDS,
        device=sample.runner.device,
        classes=sample.source.classes,
    )
    return {"probes": table}


STEPS: dict[str, Callable[[Sample], dict[str, Any]] | None] = {
    "attention": _attention,
    "kernels": _kernels,
    "cka": _cka,
    "spectrum": _layers,
    "probes": _probes,
    "maps": None,  # pictures come from all models together
    "features": None,
    "gallery": None,
    "training": None,
}


def inspect(sample: Sample, wanted: Sequence[str], kind: Kind, count: Callable[[], None]) -> Inspection:
    """Every wanted analysis of one model; `count` is called after each. kind: of CKA."""
    subject, steps = sample.subject, STEPS | {"cka": partial(_cka, kind=kind)}
    found: dict[str, Any] = {}
    notes = []
    for name in wanted:
        step = steps[name]
        if step is None:
            continue
        try:
            found |= step(sample)
        except (UserError, DataError) as error:
            notes.append(left_out(sample, name, error))
        count()
    notes += _missing(subject, found, wanted)
    return Inspection(
        subject.label, subject.about, subject.size, parameters(subject.module), **found, notes=tuple(notes)
    )


def _missing(subject: Subject, found: dict[str, Any], wanted: Sequence[str]) -> list[str]:
    """Which analyses a model without attention leaves, where attention was asked for."""
    if "attention" not in wanted or attention_sites(subject.module):
        return []
    if "kernels" in found:
        return [
            f"{subject.label} has no attention layers; its depth-wise kernels are read as attention instead."
        ]
    return [
        f"{subject.label} has neither attention nor depth-wise kernels; its statistics of attention are left out."
    ]


def said(samples: Sequence[Sample], study: Study) -> tuple[Finding, ...]:
    """What the rules say about each model, and about the first one beside each other."""
    made: list[Finding] = []
    for sample, model in zip(samples, study.models, strict=True):
        if model.attention is not None:
            made += sentences(model.attention, model.cka)
        elif model.cka is not None:
            made.append(representation(model.cka))
        distance = _mask_distance(sample.subject)
        if distance is not None:
            advice = mask_advice(distance, model.size)
            made.append(replace(advice, text=f"{model.label}: {advice.text}"))
    attended = [model.attention for model in study.models if model.attention is not None]
    made += [compare(attended[0], other) for other in attended[1:]]
    return tuple(made)


def _mask_distance(subject: Subject) -> float | None:
    """Mean distance in px from a hidden pixel to the nearest visible one under the mask that a run was trained with."""
    opened = subject.opened
    if opened is None or opened.method is None or opened.step is None:
        return None
    distance = mean_avg_distance(opened.method.masker, subject.size)
    return distance if math.isfinite(distance) else None


def runs_of(runs: Sequence[str | Path], models: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
    """The metrics of `runs`, and of those of `models` that are run folders: name -> column -> (steps, values).

    Raises UserError for one of `runs` that is no run.
    """
    folders = [folder for model in models if ((folder := Path(model).expanduser()) / METRICS).is_file()]
    folders += [Path(run).expanduser() for run in runs]  # last, so that models keep their colours
    found: dict[str, dict[str, Any]] = {}
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        run = read_run(folder)
        found[folder.name if folder.name not in found else str(folder)] = run.columns
    return found
