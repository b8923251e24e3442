"""Coming back: whether a saved state fits this run, where a run goes that keeps failing, and when it gives up."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mimkit.engine import checkpoint, nonfinite
from mimkit.engine.checkpoint import Rollback, State
from mimkit.errors import DataError, UserError, counted

log = logging.getLogger(__name__)
ROLLBACK_FACTOR = 0.5


def continued(saved: State, here: State, run: Path, drawn: str = "") -> State:
    """The saved progress under the circumstances of this process. drawn: see `About`.

    Raises UserError when data, seed or images per step are not those the run began with: the steps behind the
    checkpoint would then mean other images. What only moves the last bits (threads, processes, precision, a micro-batch
    for which nothing is drawn) is said, and what does more.
    """
    _check_same(saved, here.data, here.data_named, run)
    for key, name in (("batch_size", "train.batch_size"), ("seed", "train.seed")):
        if getattr(saved, key) != getattr(here, key):
            raise UserError(
                f"{run} was begun with {name}={getattr(saved, key)} and cannot go on with {getattr(here, key)}; "
                "resume with the old value, or start a new run."
            )
    changed = [
        f"{name} {getattr(saved, name)} -> {getattr(here, name)}"
        for name in ("threads", "micro_batch", "world", "parallel", "precision")
        if getattr(saved, name) != getattr(here, name)
    ]
    if changed:
        anew = drawn and saved.micro_batch != here.micro_batch
        log.warning(
            "Resumed under other circumstances (%s): %s.",
            ", ".join(changed),
            f"other micro-batches have {drawn} of their own, so the curve goes on, but not through the same losses"
            if anew
            else "losses agree, but not to the last bit",
        )
    progress = ("step", "lr_factor", "bad_steps", "bad_in_a_row", "rollbacks", "images", "skipped_images")
    return replace(here, **{name: getattr(saved, name) for name in progress})


def check_images(run: Path, data: str, named: str) -> None:
    """Raise UserError where the run began on other images than those of the digest `data`, which are called `named`.

    For callers that look at the images, or overwrite something of the run, before `fit` asks the same; without a
    readable checkpoint nothing is known, and nothing said.
    """
    for folder in reversed(checkpoint.saved(run)):
        try:
            saved = checkpoint.read_state(folder)
        except DataError:
            continue  # `fit` warns of it when it looks for one to go on from
        _check_same(saved, data, named, run)
        return


def _check_same(saved: State, data: str, named: str, run: Path) -> None:
    if not saved.data or not data or saved.data == data:
        return
    if saved.data_named and saved.data_named != named:
        what = f"then {saved.data_named}, now {named}"
    else:
        what = f"{named}: other files, names or labels than then, index {saved.data[:12]}, now {data[:12]}"
    raise UserError(
        f"The data of {run} have changed since it began ({what}), so its steps would mean other images; restore the "
        f"data, or start a new run that continues from its weights (encoder.init={run})."
    )


def rollback_target(run: Path, state: State, most: int) -> Path:
    """The checkpoint to go back to: the newest whole one outside a failing streak; one earlier when that did not help.

    Raises UserError when there were `most` rollbacks already.
    """
    if len(state.rollbacks) >= most:
        raise UserError(
            f"Training stays non-finite: {counted(state.bad_in_a_row, 'step')} in a row up to step {state.step}, after "
            f"{counted(most, 'rollback')} and with the learning rate at {state.lr_factor:g} of the schedule. "
            f"{run / nonfinite.FOLDER}.jsonl names the images and the first bad module, {run / nonfinite.FOLDER} "
            "holds failing batches; try a lower optimiser.base_lr, optimiser.clip=1 or train.precision=fp32."
        )
    good = _good_ones(run)
    again = bool(state.rollbacks) and state.rollbacks[-1].to_step == checkpoint.step_of(good[-1])
    return good[-2] if again and len(good) > 1 else good[-1]


def rolled_back(saved: State, failed: State) -> State:
    """The state to go on with from the checkpoint `saved`: half the rate, and a note of what happened."""
    factor = failed.lr_factor * ROLLBACK_FACTOR
    recent = tuple(step for step in failed.bad_steps if step > saved.step)
    note = Rollback(failed.step, saved.step, factor, recent)
    return replace(saved, lr_factor=factor, bad_in_a_row=0, rollbacks=(*failed.rollbacks, note))


def too_many_unreadable(state: State, share: float) -> DataError | None:
    """The error when more than `share` of the images drawn so far could not be read."""
    drawn = state.images + state.skipped_images
    if state.skipped_images <= share * drawn:
        return None
    return DataError(
        f"{state.skipped_images} of {drawn} images ({state.skipped_images / drawn:.0%}) could not be read, more than "
        f"the {share:.0%} that data.bad_share allows; skipped.jsonl in the run folder lists them, and "
        "`mimkit data check PATH` looks at all. Repair the data or raise data.bad_share."
    )


def _good_ones(run: Path) -> Sequence[Path]:
    """Whole checkpoints that were not saved inside a failing streak, by ascending step."""
    good = []
    for folder in checkpoint.saved(run):
        try:
            state = checkpoint.check(folder)
        except DataError as error:
            log.warning("%s It is passed over.", error)
            continue
        if state.bad_in_a_row == 0:
            good.append(folder)
    if not good:
        raise DataError(
            f"None of the checkpoints in {run / checkpoint.FOLDER} is whole; start again under another train.run."
        )
    return good
