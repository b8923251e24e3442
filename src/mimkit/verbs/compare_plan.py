"""What a comparison of starts is to do, settled and checked before any of it is computed, and where its cells lie."""

import json
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimkit.analysis.comparison import USES, Key
from mimkit.data.classes import labels_of, share_of
from mimkit.data.sources import Source
from mimkit.errors import UserError, counted
from mimkit.recipes import load
from mimkit.recipes.model_parts import HybridEncoder, PlainEncoder
from mimkit.recipes.schema import Recipe
from mimkit.verbs.describe import recipe_of, says
from mimkit.verbs.files import write_json
from mimkit.verbs.labels import labelled_sets
from mimkit.verbs.models import is_vit, open_model
from mimkit.verbs.start import OF_THE_WEIGHTS, RANDOM, knows
from mimkit.zoo.load import read_strictly
from mimkit.zoo.source import open_source

log = logging.getLogger(__name__)

BASELINE, TIMM = "random", "timm:"
SETTINGS = "settings.json"
DEFAULT_RECIPE, DEFAULT_HYBRID_RECIPE = "finetune_vit_base", "finetune_mcmae_base"
KINDS: dict[type, str] = {PlainEncoder: "plain ViTs", HybridEncoder: "MCMAE's encoders"}
IMAGES = ("data.channels=", "data.mean=", "data.std=")
KIND = ("encoder.name", "encoder.patch", "encoder.kernel", "data.size")  # what has a baseline of its own


@dataclass(frozen=True)
class Start:
    """A start: its name in tables, what `encoder.init` is (None: random), the recipe of the model as it comes, and the
    step of a run.
    """

    name: str
    init: str | None
    model: Recipe
    step: int | None = None

    def settings(self) -> list[str]:
        """What of a training recipe belongs to these weights, as overrides."""
        keys = [key for key in ("encoder.name", *OF_THE_WEIGHTS) if knows(self.model, key)]
        values = {key: _value(self.model, key) for key in keys}
        own = [says(key, value) for key, value in values.items() if value is not None]
        return own if self.init is None else [*own, f"encoder.init={self.init}"]

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.-]+", "-", self.name).strip("-.") or "start"


@dataclass(frozen=True)
class Plan:
    """Starts, shares with their number of labelled images, seeds, the recipe and what changes it, the images, and the
    folder of the results.
    """

    starts: tuple[Start, ...]
    labels: dict[float, int]
    seeds: tuple[int, ...]
    recipe: str
    overrides: tuple[str, ...]
    train: Source
    test: Source
    out: Path

    def keys(self, *uses: str) -> Iterator[tuple[Key, Start]]:
        """The cells of `uses`, small shares first, so that a first answer is there early."""
        for use in uses or USES:
            for share in sorted(self.labels):
                for seed in self.seeds:
                    for start in self.starts:
                        yield Key(start.name, use, share, seed), start

    def missing(self, *uses: str) -> list[tuple[Key, Start]]:
        return [(key, start) for key, start in self.keys(*uses) if not self.file(key, start).is_file()]

    def file(self, key: Key, start: Start) -> Path:
        return self.out / start.folder / f"{key.use}-{100 * key.share:g}-percent-seed-{key.seed}.json"

    def recipe_of(self, start: Start, *more: str) -> Recipe:
        return load.resolve(self.recipe, [*start.settings(), *self.overrides, *more])

    def course(self, start: Start, share: float) -> list[str]:
        """Batch, epochs and warm-up at a share of the labels, as overrides.

        The batch shrinks until an epoch has two steps at least. The number of steps falls with the square root of the
        share: between equal passes, which would leave few labels hardly any step, and equal steps.
        """
        recipe, most, count = self.recipe_of(start), max(self.labels.values()), self.labels[share]
        batch_all, batch = (fitting_batch(recipe.train.batch_size, n) for n in (most, count))
        steps = recipe.train.epochs * (most // batch_all) * math.sqrt(count / most)
        epochs = max(1, round(steps / (count // batch)))
        warmup = recipe.schedule.warmup_epochs / recipe.train.epochs * epochs
        return [
            f"train.batch_size={batch}",
            f"train.epochs={epochs}",
            f"schedule.warmup_epochs={warmup:g}",
            f"log.evaluate_every={epochs}",
            f"log.samples_every={epochs}",
            "train.keep=1",
            "log.writers=[]",
        ]

    def claim(self) -> None:
        """Make the folder, or take it up. Raises UserError where it holds a comparison of something else."""
        noted = self.out / SETTINGS
        mine = self.as_json()
        known = json.loads(noted.read_text()) if noted.is_file() else mine
        starts = {**known["starts"], **mine["starts"]}
        changed = [key for key in ("recipe", "overrides", "images") if known[key] != mine[key]]
        changed += [
            f"the start {name}"
            for name in mine["starts"]
            if starts[name] != known["starts"].get(name, starts[name])
        ]
        if changed:
            raise UserError(
                f"{self.out} holds a comparison with other settings ({', '.join(changed)}); choose another --out, or "
                "remove that folder."
            )
        write_json(noted, {**mine, "starts": starts})

    def as_json(self) -> dict[str, Any]:
        """What the cells depend on."""
        return {
            "recipe": self.recipe,
            "overrides": list(self.overrides),
            "images": [self.train.digest(), self.test.digest()],
            "starts": {start.name: [*start.settings(), f"step {start.step}"] for start in self.starts},
        }


def make_plan(
    inits: Sequence[str | Path],
    overrides: Sequence[str],
    out: Path,
    seeds: int,
    shares: Sequence[float],
    recipe: str | None,
) -> Plan:
    """Look at everything that was asked for. Raises UserError and DataError for what cannot be compared."""
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: give at least 1.")
    if not shares or not all(0 < share <= 1 for share in shares):
        raise UserError("--shares: give shares of the labels above 0 and up to 1, as 0.01,0.1,1.")
    given = [
        text
        for text in overrides
        if text.startswith(("encoder.init=", "data.label_share=", "data.shots=", "train.run=", "train.seed="))
    ]
    if given:
        raise UserError(f"{given[0]}: a comparison sets that itself; leave it out.")
    starts = _starts(inits, overrides)
    chosen = recipe or _recipe_for(starts)
    resolved = [_resolved(chosen, start, overrides, starts) for start in starts]
    resolved[0].tuning  # noqa: B018  (says what else a recipe is for)
    sets = labelled_sets(resolved[0])
    if sets.val is None:
        raise UserError(
            "A comparison needs images to measure on; name some with data.val=, or let data.val_share hold some out."
        )
    labels = _labels(sets.train, shares)
    return Plan(starts, labels, tuple(range(seeds)), chosen, tuple(overrides), sets.train, sets.val, out)


def fitting_batch(batch: int, images: int) -> int:
    """The batch for so few images: a power of two, so that an epoch has two steps; at least 2, which mixing pairs."""
    return min(batch, 1 << (max(2, images // 2).bit_length() - 1))


def _starts(inits: Sequence[str | Path], overrides: Sequence[str]) -> tuple[Start, ...]:
    """Each start once; `random` stands for random weights of every encoder among the others."""
    texts = list(dict.fromkeys(str(init).rstrip("/") for init in inits))
    loaded = [_open(text, overrides) for text in texts if text != BASELINE]
    if BASELINE not in texts:
        made = loaded
    elif not loaded:
        raise UserError(
            f"--inits {BASELINE} alone says no encoder; name another start beside it, or random:vit_tiny."
        )
    else:
        made = [*_baselines(loaded), *loaded]
    if not made:
        raise UserError("A comparison needs starts: --inits random runs/first timm:vit_base_patch16_224.mae")
    return tuple(made)


def _open(text: str, overrides: Sequence[str]) -> Start:
    if text.startswith(TIMM) and is_vit(weights := open_source(text)):
        described = recipe_of(text, weights, read_strictly(weights)[1].tensors)
        return Start(text, text, described)  # computed here, beside which a run of the same encoder can stand
    # random weights have no images of their own: they take those that are asked for
    own = [given for given in overrides if given.startswith(IMAGES)] if text.startswith(RANDOM) else ()
    opened = open_model(text, own)
    if opened.task is not None:
        log.warning("%s was fine-tuned: it may have seen the images that the starts are measured on.", text)
    return Start(text, None if text.startswith(RANDOM) else text, opened.recipe, opened.step)


def _baselines(loaded: Sequence[Start]) -> list[Start]:
    """Random weights for every kind of encoder and image size among the loaded starts."""
    kinds: dict[tuple[Any, ...], Start] = {}
    for start in loaded:
        if start.init is not None:
            kind = tuple(_value(start.model, key) for key in KIND)
            kinds.setdefault(kind, start)
    many = len(kinds) > 1
    return [
        Start(f"{BASELINE} like {start.name}" if many else BASELINE, None, start.model)
        for start in kinds.values()
    ]


def _recipe_for(starts: Sequence[Start]) -> str:
    """The fine-tuning recipe of the first encoder that has one; one for all, so that settings are equal.

    Where hybrid encoders are among the starts it is one of theirs: a plain ViT's names a patch, which they do not have.
    """
    hybrid = [start for start in starts if isinstance(start.model.encoder, HybridEncoder)]
    names = [f"finetune_{start.model.encoder.name}" for start in hybrid or starts]
    usual = DEFAULT_HYBRID_RECIPE if hybrid else DEFAULT_RECIPE
    return next((name for name in names if name in load.names()), usual)


def _resolved(recipe: str, start: Start, overrides: Sequence[str], starts: Sequence[Start]) -> Recipe:
    """The recipe as `start` and the overrides want it. Raises UserError, for a recipe that sets what encoders of this
    kind do not have with the name of one that fits.
    """
    try:
        return load.resolve(recipe, [*start.settings(), *overrides])
    except UserError as error:
        raise _misfit(recipe, start, starts) or error from None


def _misfit(recipe: str, start: Start, starts: Sequence[Start]) -> UserError | None:
    """Says that a recipe is for encoders of another kind than `start`; None where that is not what is wrong."""
    own = load.resolve(recipe)
    own.tuning  # noqa: B018  (says what else a recipe is for)
    if type(own.encoder) is type(start.model.encoder) or _resolves(recipe, start.settings()):
        return None
    made, given = (KINDS[type(part.encoder)] for part in (own, start.model))
    return UserError(
        f"The recipe {recipe} is for {made}, and {start.name} is one of {given} ({start.model.encoder.name}); use "
        f"--recipe {_recipe_for(starts)}, or leave --recipe out."
    )


def _resolves(recipe: str, settings: Sequence[str]) -> bool:
    try:
        load.resolve(recipe, settings)
    except UserError:
        return False
    return True


def _labels(train: Source, shares: Sequence[float]) -> dict[float, int]:
    """Share -> labelled images; shares that come to the same images as a larger one are left out."""
    labels = labels_of(train)
    counts = {share: len(share_of(labels, share, 0)) for share in sorted(set(shares), reverse=True)}
    kept: dict[float, int] = {}
    for share, count in counts.items():
        if count in kept.values():
            log.warning(
                "%g %% of the labels are the same %s as a larger share; left out.",
                100 * share,
                counted(count, "image"),
            )
        else:
            kept[share] = count
    return dict(sorted(kept.items()))


def _value(recipe: Recipe, key: str) -> Any:
    """A field of the recipe; None where encoders of its kind have no such field."""
    part, name = key.split(".")
    return getattr(getattr(recipe, part), name, None)
