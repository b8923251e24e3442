"""What a run's numbers say, as sentences with the rule that made each: no judgement that a reader could not repeat.

A sentence holds its numbers. Where there is too little to judge, it says so or stays away. Thresholds are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimkit.errors import counted
from mimkit.plots.curves import Series, finite
from mimkit.plots.run import PROBE, last

ENOUGH = 20  # rows; fewer are not judged
MOVED = 0.02  # share of the loss, or accuracy where no spread is known, below which nothing has moved
STARVED = 0.2  # share of a step spent waiting for data


@dataclass(frozen=True)
class Finding:
    """A sentence, how it was computed, and whether it is "good", "bad" or neither ("plain")."""

    text: str
    rule: str
    tone: str = "plain"


def findings(
    columns: Mapping[str, Series],
    epochs: float | None,
    skipped: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, Any]],
) -> list[Finding]:
    """All that can be said. columns: of metrics.jsonl; epochs: planned; skipped, failures: rows of their files."""
    columns = {name: series for name, series in columns.items() if len(finite(series)[0])}
    made = [_progress(columns, epochs), _loss(columns), _held_out(columns), _trivial(columns)]
    made += [_probe(columns), _rank(columns)]
    made += [_skipped(skipped), _failures(columns, failures), _data(columns)]
    return [finding for finding in made if finding is not None]


def _progress(columns: Mapping[str, Series], epochs: float | None) -> Finding | None:
    if "step" not in columns:
        return None
    text = f"The run stands at step {int(last(columns['step']))}"
    if "epoch" in columns:
        epoch = last(columns["epoch"])
        planned = f" of {epochs:g}" if epochs else ""
        text += f", epoch {epoch:.4g}{planned}"
        if epochs and epoch >= epochs * (1 - 1e-6):
            return Finding(
                text + ": it is finished.", "Last row of metrics.jsonl, train.epochs of recipe.yaml.", "good"
            )
    return Finding(text + ".", "Last row of metrics.jsonl, train.epochs of recipe.yaml.")


def _loss(columns: Mapping[str, Series]) -> Finding | None:
    if "loss" not in columns:
        return Finding("No step has a finite loss.", "Column loss.", "bad")
    values = finite(columns["loss"])[1]
    rule = f"Means of the first and the last twentieth of the steps; below {MOVED:.0%} of change it stayed."
    if len(values) < ENOUGH:
        few = (
            f"{counted(len(values), 'step')} {'is' if len(values) == 1 else 'are'} too few to judge the loss"
        )
        return Finding(f"{few}; it is {values[-1]:.4g}.", rule)
    part = max(1, len(values) // 20)
    start, end = float(values[:part].mean()), float(values[-part:].mean())
    change = (end - start) / abs(start) if start else 0.0
    if abs(change) < MOVED:
        return Finding(f"The loss stayed at {end:.4g} (it began at {start:.4g}).", rule, "bad")
    verb, tone = ("fell", "good") if change < 0 else ("rose", "bad")
    return Finding(f"The loss {verb} from {start:.4g} to {end:.4g} ({100 * change:+.0f} %).", rule, tone)


def _held_out(columns: Mapping[str, Series]) -> Finding | None:
    """Of a classifier. No judgement: the best of many measurements is best by chance too."""
    if "val/top1" not in columns:
        return None
    steps, values = finite(columns["val/top1"])
    best = int(values.argmax())
    text = f"On the held-out images top-1 is {100 * values[-1]:.1f} %"
    if best < len(values) - 1:
        text += f" (the best of {len(values)} measurements is {100 * values[best]:.1f} %, at step {int(steps[best])})"
    return Finding(text + ".", "Column val/top1, its last and its largest value.")


def _trivial(columns: Mapping[str, Series]) -> Finding | None:
    """Needs the model's loss on the very images of the trivial predictors."""
    found = {n.removeprefix("trivial/"): last(s) for n, s in columns.items() if n.startswith("trivial/")}
    model = found.pop("model", None)
    if model is None or not found:
        return None
    others = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in found.items())
    text = (
        f"On a few images with fixed masks the model's loss is {model:.3g}; without any learning: {others}. "
    )
    rule = f"Columns trivial/*, last values; better means by {MOVED:.0%} or more."
    better = {name for name, value in found.items() if model < value * (1 - MOVED)}
    blind = set(found) - {"patch_mean"}
    if "patch_mean" in better:
        return Finding(text + "It predicts more than the right colours: edges or texture.", rule, "good")
    if blind and blind <= better:
        return Finding(text + "It beats every predictor that sees no more than it does.", rule, "good")
    if "zero" in better or better:
        rest = " and ".join(sorted(name.replace("_", " ") for name in blind - better))
        return Finding(text + f"It has learned something, but not yet more than {rest}.", rule)
    return Finding(text + "It has not learned anything that shows here.", rule, "bad")


def _probe(columns: Mapping[str, Series]) -> Finding | None:
    names = [n for n in columns if (match := PROBE.match(n)) and not match[1] and not match[5]]
    if not names:
        return None
    best = max(names, key=lambda name: last(columns[name]))
    steps, values = finite(columns[best])
    label = _named(best)
    rule = "The column probe/* that is best at the end; moved means by more than its spread over the folds."
    if len(values) == 1:
        return Finding(f"The best probe is {label}: {100 * values[0]:.1f} %, measured once.", rule)
    spread = last(columns[best + "_std"]) if best + "_std" in columns else MOVED
    change = float(values[-1] - values[0])
    text = (
        f"The best probe is {label}: from {100 * values[0]:.1f} % at step {int(steps[0])} to {100 * values[-1]:.1f} % "
        f"at step {int(steps[-1])} (spread {100 * spread:.1f})"
    )
    if abs(change) <= spread:
        return Finding(text + ": no change that its spread would not explain.", rule)
    return Finding(
        text + (": the features got better." if change > 0 else ": the features got worse."),
        rule,
        "good" if change > 0 else "bad",
    )


def _named(column: str) -> str:
    _, classifier, pooling, layer, _ = PROBE.match(column).groups()  # type: ignore[union-attr]
    kinds = {"knn": "k-NN", "linear": "linear", "cls": "class token", "mean": "mean"}
    return f"{kinds[classifier]} on the {kinds[pooling]} of layer {layer}"


def _rank(columns: Mapping[str, Series]) -> Finding | None:
    series = columns.get("quality/effective_rank")
    if series is None:
        return None
    values = finite(series)[1]
    rule = "Column quality/effective_rank, first and last value; below half of the first is a warning."
    if len(values) < 2:
        return Finding(f"The effective rank of the features is {values[-1]:.1f}.", rule)
    text = f"The effective rank of the features went from {values[0]:.1f} to {values[-1]:.1f}"
    if values[-1] < values[0] / 2:
        return Finding(text + ": they may be collapsing onto few directions.", rule, "bad")
    return Finding(text + ".", rule)


def _skipped(rows: Sequence[Mapping[str, Any]]) -> Finding:
    rule = "Different names in skipped.jsonl."
    names = {str(row.get("name", row.get("id"))) for row in rows}
    if not names:
        return Finding("Every image could be read.", rule, "good")
    many = counted(len(names), "image")
    return Finding(f"{many} could not be read and gave way to others; skipped.jsonl names them.", rule, "bad")


def _failures(columns: Mapping[str, Series], rows: Sequence[Mapping[str, Any]]) -> Finding:
    rule = "Rows of nonfinite.jsonl, which are kept through resumed runs and rollbacks."
    if not rows:
        return Finding("Every step was finite.", rule, "good")
    steps = [int(row["step"]) for row in rows if "step" in row]
    many = f"{counted(len(rows), 'step')} {'was' if len(rows) == 1 else 'were'}"
    where = f", the last one at step {max(steps)}" if steps else ""
    return Finding(
        f"{many} not finite and changed nothing{where}; nonfinite.jsonl has the samples.", rule, "bad"
    )


def _data(columns: Mapping[str, Series]) -> Finding | None:
    if "data_share" not in columns:
        return None
    values = finite(columns["data_share"])[1]
    share = float(np.median(values[len(values) // 2 :]))
    rule = f"Median of data_share over the second half of the steps; from {STARVED:.0%} on it is a warning."
    if share < STARVED:
        return Finding(f"{100 * share:.0f} % of a step were spent waiting for data.", rule)
    return Finding(
        f"{100 * share:.0f} % of a step were spent waiting for data; more data.workers, a higher data.repeats or a "
        "copy made by `mimkit data prepare` would make it faster.",
        rule,
        "bad",
    )
