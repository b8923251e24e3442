"""`mimkit compare`: does my pre-training help? One encoder from several starts, on the user's own labels.

Every start is frozen and probed, and fine-tuned, at several shares of the labels and with several seeds, under one
recipe, on the same labels for a seed, and measured on the same held-out images. Only what belongs to the weights
(patch, positions, image size, mean and deviation) is each start's own. A cell that is done is kept as a file, and a
fine-tuning run that was stopped is resumed, so the same command goes on where it was.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mimkit import plots
from mimkit.analysis.classify import knn_classify, linear_classify
from mimkit.analysis.comparison import USES, Comparison, Key
from mimkit.analysis.probe import collect
from mimkit.data.batch import Batch
from mimkit.data.classes import counts_of, labels_of, share_of
from mimkit.data.sources import Source
from mimkit.encoders import Encoder
from mimkit.engine import checkpoint
from mimkit.errors import Interrupted, UserError, counted
from mimkit.recipes import build
from mimkit.tasks.classify import Classifier
from mimkit.verbs import finetune, training
from mimkit.verbs.compare_plan import Plan, Start, make_plan
from mimkit.verbs.files import write_json
from mimkit.verbs.models import open_model
from mimkit.verbs.quiet import only_from
from mimkit.verbs.running import Runner, on_device
from mimkit.zoo.load import initialise

log = logging.getLogger(__name__)

SHARES = (0.01, 0.1, 1.0)
TABLE, PICTURE = "compare.json", "compare.png"
FROZEN = ("knn", "linear")
POOLING = "mean"  # of the patches behind the last norm: what fine-tuning reads too


def compare(
    inits: Sequence[str | Path],
    overrides: Sequence[str] = (),
    out: Path = Path("compare"),
    seeds: int = 3,
    shares: Sequence[float] = SHARES,
    recipe: str | None = None,
) -> Comparison:
    """See `mimkit.api.compare`."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("A comparison is many small runs, one after the other; start it without torchrun.")
    with only_from(log.name):
        plan = make_plan(inits, overrides, out, seeds, shares, recipe)
        plan.claim()
        _announce(plan)
        try:
            _probe(plan)
            _finetune(plan)
        except Interrupted:
            raise Interrupted(
                f"Stopped as asked; what is done is kept in {out}. The same command goes on from there."
            ) from None
    found = _collect(plan)
    write_json(out / TABLE, {**plan.as_json(), "verdict": found.verdict(), "table": found.table()})
    plots.save(found.figure(), out / PICTURE)
    return found


def _announce(plan: Plan) -> None:
    names = ", ".join(start.name for start in plan.starts)
    shares = ", ".join(f"{100 * share:g} % ({count})" for share, count in plan.labels.items())
    log.info("Starts: %s; recipe %s for all of them", names, plan.recipe)
    log.info(
        "Shares of the labels (images): %s; measured on %s; %s",
        shares,
        counted(len(plan.test), "held-out image"),
        counted(len(plan.seeds), "seed"),
    )
    whole, left = len(list(plan.keys("finetune"))), len(plan.missing("finetune"))
    done = f", {whole - left} of them done already" if left < whole else ""
    log.info("%s%s; results in %s", counted(whole, "fine-tuning run"), done, plan.out)


def _probe(plan: Plan) -> None:
    """The cells of the frozen encoders; images go through an encoder once, and once a seed where it is random."""
    for start in plan.starts:
        left = [key for key, owner in plan.missing(*FROZEN) if owner == start]
        groups = (
            [[key for key in left if key.seed == seed] for seed in plan.seeds]
            if start.init is None
            else [left]
        )
        for keys in filter(None, groups):
            log.info("Reading the features of %s", start.name)
            train, test = _features(plan, start, keys[0].seed)
            for key in keys:
                _save(plan, start, key, _classify(plan, key, train, test))


def _features(
    plan: Plan, start: Start, seed: int
) -> tuple[tuple[Tensor, np.ndarray], tuple[Tensor, np.ndarray]]:
    """(features (n, C), ids (n,)) of the training and of the test images; what cannot be read has no row."""
    recipe = plan.recipe_of(start, f"train.seed={seed}")
    torch.manual_seed(seed)  # random weights are those that fine-tuning starts from with this seed
    encoder = build.encoder(recipe)
    if start.init is not None:
        initialise(encoder, start.init)
    runner = Runner(recipe)
    on_device(encoder, runner)

    return _read(encoder, plan.train, runner), _read(encoder, plan.test, runner)


def _read(encoder: Encoder, source: Source, runner: Runner) -> tuple[Tensor, np.ndarray]:
    ids: list[int] = []

    def batches() -> Iterator[Batch]:
        for batch in runner.batches(source):
            ids.extend(batch.ids.tolist())
            yield runner.prepare(batch)

    features, _, _ = collect({"": encoder}, batches(), [encoder.depth], [POOLING], runner.device)
    return features["", encoder.depth, POOLING], np.array(ids)


def _classify(
    plan: Plan, key: Key, train: tuple[Tensor, np.ndarray], test: tuple[Tensor, np.ndarray]
) -> np.ndarray:
    """Which test images a classifier on frozen features gets right, bool (n,)."""
    labels = labels_of(plan.train)
    drawn = np.isin(train[1], share_of(labels, key.share, key.seed))
    known, classes = torch.from_numpy(labels[train[1][drawn]]), len(plan.train.classes)
    if key.use == "knn":
        given = knn_classify(train[0][drawn], known, test[0], classes)[2][:, 0]
    else:
        given = linear_classify(train[0][drawn], known, test[0], classes, key.seed, unlabelled=train[0])
    right = np.zeros(len(plan.test), dtype=bool)
    right[test[1]] = given.cpu().numpy() == labels_of(plan.test)[test[1]]
    return right


def _finetune(plan: Plan) -> None:
    """The fine-tuning runs, one after the other; a run's checkpoints go when its answers are kept."""
    left = plan.missing("finetune")
    began, done = time.monotonic(), 0.0
    work = {key: _work(plan, start, key) for key, start in left}
    for number, (key, start) in enumerate(left, start=1):
        right = _run(plan, start, key)
        _save(plan, start, key, right)
        done += work[key]
        rest = timedelta(seconds=round((time.monotonic() - began) * (sum(work.values()) / done - 1)))
        log.info(
            "run %d of %d: %s, %g %% of the labels, seed %d: %.1f %%; left %s",
            number,
            len(left),
            start.name,
            100 * key.share,
            key.seed,
            100 * right.mean(),
            rest,
        )


def _work(plan: Plan, start: Start, key: Key) -> float:
    """Images that a run sees, plus a little for its start."""
    recipe = plan.recipe_of(start, *plan.course(start, key.share))
    return recipe.train.epochs * plan.labels[key.share] + len(plan.test) / 3 + 100


def _run(plan: Plan, start: Start, key: Key) -> np.ndarray:
    """Fine-tune one cell, or go on with it, and say which test images it gets right."""
    folder = plan.file(key, start).with_suffix("")
    if training.is_run(folder) and checkpoint.saved(folder):
        finetune.run(folder, (), resume=True)
    else:
        settings = [*start.settings(), *plan.overrides, *plan.course(start, key.share)]
        cell = [f"data.label_share={key.share!r}", f"train.seed={key.seed}", f"train.run={folder}"]
        finetune.run(plan.recipe, [*settings, *cell])
    right = _answers(plan, folder)
    shutil.rmtree(folder / checkpoint.FOLDER)  # three times the model's size for each of many runs
    return right


@torch.inference_mode()
def _answers(plan: Plan, run: Path) -> np.ndarray:
    opened = open_model(run)
    assert isinstance(opened.task, Classifier)
    runner, right = Runner(opened.recipe), np.zeros(len(plan.test), dtype=bool)
    on_device(opened.task, runner)
    for batch in runner.batches(plan.test):
        if len(batch.ids):
            with runner.autocast():
                answers = opened.task.predict(runner.prepare(batch)).logits.argmax(1).cpu()
            right[batch.ids.numpy()] = (answers == batch.targets).numpy()
    return right


def _save(plan: Plan, start: Start, key: Key, right: np.ndarray) -> None:
    content = {**key._asdict(), "labels": plan.labels[key.share], "accuracy": float(right.mean())}
    write_json(
        plan.file(key, start), {**content, "right": "".join("01"[answer] for answer in right.astype(int))}
    )


def _collect(plan: Plan) -> Comparison:
    right = {}
    for key, start in plan.keys(*USES):
        bits = json.loads(plan.file(key, start).read_text())["right"]
        right[key] = np.array([bit == "1" for bit in bits])
    counts = counts_of(plan.test)
    names = tuple(start.name for start in plan.starts)
    return Comparison(names, plan.labels, plan.seeds, len(counts), float(counts.max() / counts.sum()), right)
