"""Whether one start is better than another: a verdict that noise alone does not make, and a real lead does."""

import numpy as np
import pytest

from mimkit.analysis.comparison import USES, Comparison, Key

SEEDS = (0, 1, 2)


def compared(accuracies: dict[str, tuple[float, ...]], images: int = 400, seed: int = 0) -> Comparison:
    """Starts with these accuracies at 1, 10 and 100 % (as many as are given), each image right or wrong by chance."""
    rng = np.random.default_rng(seed)
    shares = (0.01, 0.1, 1.0)[-len(next(iter(accuracies.values()))) :]
    right = {
        Key(start, use, share, number): rng.random(images) < accuracy
        for start, values in accuracies.items()
        for use in USES
        for share, accuracy in zip(shares, values, strict=True)
        for number in SEEDS
    }
    labels = {share: int(1000 * share) for share in shares}
    return Comparison(tuple(accuracies), labels, SEEDS, 10, 0.1, right)


def test_a_clear_lead_is_more_than_the_noise() -> None:
    found = compared({"random": (0.2, 0.4, 0.6), "mine": (0.4, 0.6, 0.8)})
    verdict = found.verdict()
    assert verdict.startswith("Fine-tuned, mine wins over random by more than the noise at 1 % (+")
    assert verdict.endswith("of the labels.") and "cannot be told apart" not in verdict
    assert verdict.count("points") == 3


def test_equal_starts_are_rarely_told_apart() -> None:
    told = ["wins" in compared({"a": (0.5,), "b": (0.5,)}, seed=seed).verdict() for seed in range(300)]
    assert sum(told) < 0.09 * len(told)  # twice the standard error: one in twenty, both sides together


def test_the_gap_has_the_error_that_repetition_shows() -> None:
    gaps = [compared({"a": (0.7,), "b": (0.6,)}, seed=seed).gap("a", "b", "knn", 1.0) for seed in range(200)]
    spread = np.std([gap.mean for gap in gaps])
    assert np.mean([gap.mean for gap in gaps]) == pytest.approx(0.1, abs=0.01)
    assert 1.0 < np.mean([gap.error for gap in gaps]) / spread < 1.8  # cautious, never too sure


def test_pairs_see_what_two_error_bars_do_not() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(400) < 0.6  # images are easy or hard for both
    right = {}
    for use in USES:
        for seed in SEEDS:
            right[Key("a", use, 1.0, seed)] = base
            right[Key("b", use, 1.0, seed)] = base | (rng.random(400) < 0.05)
    found = Comparison(("a", "b"), {1.0: 300}, SEEDS, 2, 0.5, right)
    assert found.gap("b", "a", "finetune", 1.0).beyond_noise  # 2 points; each bar alone is ± 5


def test_the_verdict_groups_shares_with_one_outcome_and_names_all_leaders() -> None:
    found = compared({"random": (0.3, 0.5, 0.8), "a": (0.5, 0.7, 0.8), "b": (0.5, 0.7, 0.8)}, images=1500)
    verdict = found.verdict()
    assert "which cannot be told apart, win over random by more than the noise at 1 %" in verdict
    assert verdict.count(";") == 1 and "cannot be told apart at 100 %" in verdict


def test_one_image_and_one_seed_prove_nothing() -> None:
    right = {Key(start, use, 1.0, 0): np.array([start == "a"]) for start in ("a", "b") for use in USES}
    found = Comparison(("a", "b"), {1.0: 2}, (0,), 2, 0.5, right)
    assert found.accuracy("a", "knn", 1.0) == (1.0, 0.0)
    assert "cannot be told apart" in found.verdict() and "one seed" in found.verdict()


def test_a_single_start_gets_no_verdict() -> None:
    assert "nothing to compare" in compared({"mine": (0.5,)}).verdict()


def test_the_table_holds_every_cell_with_its_spread() -> None:
    found = compared({"random": (0.2, 0.4), "mine": (0.4, 0.6)})
    rows = found.table()
    assert len(rows) == 2 * 3 * 2
    row = next(r for r in rows if (r["start"], r["use"], r["share"]) == ("mine", "linear", 1.0))
    assert row["labels"] == 1000 and row["mean"] == pytest.approx(np.mean(row["seeds"]))
    lines = found.lines()
    assert "10 % (100)" in lines[1] and "100 % (1000)" in lines[1]
    assert sum("fine-tuned" in line for line in lines) == 2
    assert len(found.figure().axes) == 2
