"""`mimkit analyze`: what did these models learn? Every analysis that applies, on the same images, in one folder.

"Revealing the Dark Secrets of Masked Image Modeling" (Xie et al. 2023) explained masked image modelling by such
numbers; here they are one command for any backbone. Models read the images as they want them; an analysis that does not
apply to a model is left out and said so.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mimkit.analysis.hsic import LEAST
from mimkit.analysis.inside import Inspection, Study
from mimkit.analysis.similarity import CKA, USUAL, Kind
from mimkit.analysis.subjects import check_weights
from mimkit.data.sampling import epoch_order
from mimkit.data.sources import Source, open_source
from mimkit.errors import DataError, UserError, nearest
from mimkit.verbs import analyze_out, analyze_pictures
from mimkit.verbs.analyze_models import Sample, open_subjects
from mimkit.verbs.analyze_steps import STEPS, cka_of, inspect, runs_of, said
from mimkit.verbs.labels import open_labelled
from mimkit.verbs.running import Progress
from mimkit.verbs.watch import even_draw

log = logging.getLogger(__name__)

IMAGES = 256
ATTENTION = (  # how its statistics are taken, for the settings of the report
    "after softmax, whole images, no mask, evaluation mode; rows of patches over patches alone; "
    "KL with both logarithms of max(a, 1e-8)"
)


@dataclass(frozen=True)
class Analysis:
    """Where the report lies, what it says in short, and what was left out."""

    out: Path
    study: Study
    notes: tuple[str, ...]

    @property
    def report(self) -> Path:
        return self.out / analyze_out.REPORT

    def lines(self) -> list[str]:
        """For a terminal."""
        found = [f"- {finding.text}" for finding in self.study.findings]
        return [*(found or ["No rule has anything to say about these numbers."]), *self.notes]


def analyze(
    models: Sequence[str | Path],
    path: str | Path,
    overrides: Sequence[str] = (),
    out: Path = Path("analysis"),
    images: int = IMAGES,
    labels: bool = False,
    runs: Sequence[str | Path] = (),
    only: Sequence[str] = (),
    kind: Kind | None = None,
    progress: Progress = None,
) -> Analysis:
    """See `mimkit.api.analyze`. kind: of CKA, where something was said of it."""
    wanted = _wanted(only, labels)
    if kind is not None and "cka" not in wanted:
        raise UserError(
            f"--only {','.join(only)} leaves cka out, which alone --cka-examples, --cka-estimator and --cka-block are "
            "for; add cka to --only, or drop them."
        )
    kind = kind or USUAL
    analyze_out.claim(out)
    curves = runs_of(runs, models) if "training" in wanted else {}
    source, ids = _sample(path, images, labels, wanted)
    subjects = open_subjects(models, overrides)
    for subject in subjects:
        check_weights(subject.module, subject.label)
        log.info("%s: %s", subject.label, subject.about)
    count = _counter(progress, len(wanted) * len(subjects) + len(subjects))
    samples = [Sample(subject, source, ids) for subject in subjects]
    _check_readable(samples)
    found = [inspect(sample, wanted, kind, count) for sample in samples]
    cross, apart = _between(samples, kind) if "cka" in wanted else ([], [])
    study = _study(samples, found, wanted, cross, apart)
    study = replace(study, runs=curves, **analyze_pictures.pictures(samples, study, wanted, count))
    _check_anything(study)
    study = replace(study, findings=said(samples, study))
    notes = [note for model in found for note in model.notes]
    return Analysis(out, study, (*study.notes, *notes, *analyze_out.write(study, out)))


def _check_readable(samples: Sequence[Sample]) -> None:
    """Raise DataError where no model can read any of the images; where another can, the analyses say so."""
    for sample in samples:
        try:
            sample.few(1)
        except DataError as error:
            why = error
        else:
            return
    raise why


def _check_anything(study: Study) -> None:
    """Raise UserError where there is nothing to report."""
    found = [(m.attention, m.kernels, m.cka, m.layers, m.probes) for m in study.models]
    if not any(one is not None for each in found for one in each) and not study.sheets and not study.runs:
        notes = [*study.notes, *(note for model in study.models for note in model.notes)]
        raise UserError(f"None of the analyses could be done. {' '.join(notes)}".rstrip())


def _wanted(only: Sequence[str], labels: bool) -> tuple[str, ...]:
    """The analyses to do, in order. Raises UserError for an unknown one."""
    for name in only:
        if name not in STEPS:
            raise UserError(f"--only {name}: known are {', '.join(STEPS)}.{nearest(name, STEPS)}")
    if "probes" in only and not labels:
        raise UserError(
            "--only probes: probes need labelled images; add --labels and a folder of class folders."
        )
    return tuple(name for name in STEPS if (name in only or not only) and (labels or name != "probes"))


def _sample(path: str | Path, images: int, labels: bool, wanted: Sequence[str]) -> tuple[Source, list[int]]:
    """The images and which of them are read: the same ones every time, with labels evenly over the classes."""
    source = open_labelled(path) if labels else open_source(path)
    if labels:
        ids = even_draw([source.label(i) or 0 for i in range(len(source))], images, 0)
    else:
        ids = np.sort(epoch_order(0, 0, len(source))[:images]).tolist()
    if len(ids) < LEAST and "cka" in wanted:
        others = ",".join(name for name in wanted if name != "cka")
        raise UserError(
            f"CKA needs at least {LEAST} images and there are {len(ids)} ({source.name}, --images {images}); give it "
            f"more, or leave it out: --only {others}."
        )
    return source, ids


def _counter(progress: Progress, total: int) -> Callable[[], None]:
    """Called when an analysis is done."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, total), total)

    return count


def kind_of(examples: str | None, estimator: str | None, block: int | None) -> Kind | None:
    """Which CKA is asked for, what is left out as usual; None where nothing is said. block: 0 for all images at once.

    Raises UserError for what CKA does not know.
    """
    if examples is None and estimator is None and block is None:
        return None
    if block is not None and block != 0 and block < LEAST:
        raise UserError(
            f"--cka-block {block}: CKA needs at least {LEAST} images in a block; 0 takes all images at once."
        )
    return Kind(
        USUAL.examples if examples is None else examples,
        USUAL.estimator if estimator is None else estimator,
        USUAL.block if block is None else block or None,
    )


def _between(samples: Sequence[Sample], kind: Kind) -> tuple[list[CKA], list[str]]:
    """CKA of the first model with each other one, and notes on those whose features do not allow it."""
    found, notes = [], []
    for other in samples[1:]:
        try:
            found.append(cka_of(samples[0], other, kind))
        except (UserError, DataError) as error:
            pair = f"{samples[0].subject.label} and {other.subject.label}"
            notes.append(f"CKA between {pair} was left out. {error}")
            log.warning("%s", notes[-1])
    return found, notes


def _study(
    samples: Sequence[Sample],
    found: Sequence[Inspection],
    wanted: Sequence[str],
    cross: list[CKA],
    apart: list[str],
) -> Study:
    first = samples[0]
    skipped = list(dict.fromkeys(name for sample in samples for name in sample.skipped))
    alike = [one for one in (*(model.cka for model in found), *cross) if one is not None]
    probes = [model.probes.stored_mib for model in found if model.probes is not None]
    read = len(first.ids) - len(first.skipped)
    settings = [
        (
            "images",
            f"{read} of {len(first.source)} in {first.source.name}, drawn with a fixed seed; shorter side resized, "
            "centre cropped, each model's own size and normalisation",
        ),
        ("analyses", ", ".join(wanted)),
        *([("attention", ATTENTION)] if any(model.attention is not None for model in found) else []),
        *_of_cka(alike),
        *([("probes", "means over patches of every layer" + _held("features", probes))] if probes else []),
        ("devices", ", ".join(dict.fromkeys(str(sample.runner.device) for sample in samples)) + ", float32"),
    ]
    if skipped:
        were = "image was" if len(skipped) == 1 else "images were"
        settings.append(("unreadable", f"{len(skipped)} {were} left out, such as {skipped[0]}"))
    notes = [*_together(found), *apart, *dict.fromkeys(f"CKA: {note}" for one in alike for note in one.notes)]
    return Study(tuple(found), first.source.name, read, tuple(settings), tuple(cross), notes=tuple(notes))


def _of_cka(found: Sequence[CKA]) -> list[tuple[str, str]]:
    """How CKA was estimated, the same for all models."""
    if not found:
        return []
    held = _held("images and features", [one.stored_mib for one in found])
    return [("CKA", f"linear, outputs of blocks; {found[0].how}{held}")]


def _held(what: str, mib: Sequence[float]) -> str:
    """What an analysis that cannot stream holds in memory."""
    return f"; at most {max(mib):.3g} MiB of {what} held at once" if mib else ""


def _together(found: Sequence[Inspection]) -> list[str]:
    """What a reader must know where the models are not alike."""
    notes = []
    sizes = {model.label: model.size for model in found}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{label} {size[0]} × {size[1]}" for label, size in sizes.items())
        notes.append(
            f"The models read images of different sizes ({listed}): compare distances as shares of uniform attention, "
            "not in pixels."
        )
    for model in found:
        attending, blocks = (len(one.layers) if one else 0 for one in (model.attention, model.layers))
        if 0 < attending < blocks:
            attend = "attends" if attending == 1 else "attend"
            notes.append(
                f"{attending} of the {blocks} blocks of {model.label} {attend}; layers of attention are counted among "
                "those, all others among all blocks."
            )
    depths = {m.label: len(m.attention.layers) for m in found if m.attention is not None}
    if len(set(depths.values())) > 1:
        listed = ", ".join(f"{label} {depth}" for label, depth in depths.items())
        notes.append(
            f"The models have different numbers of attention layers ({listed}): layers are counted from the first one, "
            "and equal numbers are not equal depths."
        )
    return notes
