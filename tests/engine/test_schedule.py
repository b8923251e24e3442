"""The learning rate as a function of the step."""

import json
from pathlib import Path

import numpy as np
import pytest

from mimkit.engine.schedule import Schedule, describe_lr, learning_rate, peak_lr, short

GOLDEN = Path(__file__).parents[3] / "shared" / "reference" / "mae" / "golden"


def test_the_first_step_has_rate_zero_when_there_is_a_warm_up_whatever_the_minimum() -> None:
    assert Schedule(1.0, epochs=10, steps_per_epoch=5, warmup_epochs=2, min_lr=0.1).at(0) == 0.0


def test_the_peak_is_reached_when_the_warm_up_ends_and_the_minimum_never_quite() -> None:
    schedule = Schedule(1.0, epochs=10, steps_per_epoch=5, warmup_epochs=2, min_lr=0.1)
    assert schedule.at(10) == 1.0
    assert 0.1 < schedule.at(schedule.steps - 1) < 0.11


def test_without_a_warm_up_the_run_starts_at_the_peak() -> None:
    assert Schedule(1.0, epochs=3, steps_per_epoch=5).at(0) == 1.0


def test_half_way_through_the_cosine_the_rate_is_half_way_to_the_minimum() -> None:
    assert learning_rate(6, lr=1.0, min_lr=0.2, warmup_epochs=2, epochs=10) == pytest.approx(0.6)


def test_the_sentence_about_the_rate_is_the_one_that_the_manual_shows() -> None:
    assert describe_lr(1.5e-4, 8, 16, 8) == (
        "lr 6.0e-4 = 1.5e-4 x (batch 8 x accumulate 16 x processes 8 = 1024) / 256"
    )


@pytest.mark.parametrize(
    ("rate", "text"), [(0.1, "1.0e-1"), (1.875e-5, "1.875e-5"), (2.4e-3, "2.4e-3"), (6.4, "6.4e0")]
)
def test_rates_are_written_as_people_write_them(rate: float, text: str) -> None:
    assert short(rate) == text


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden cases are not beside this checkout")
def test_the_published_schedules_come_out() -> None:
    cases = json.loads((GOLDEN / "cases.json").read_text())
    settings = next(case["config"] for case in cases if case["name"] == "lr_schedule")
    with np.load(GOLDEN / "lr_schedule.npz") as wanted:
        for name, one in settings.items():
            shape = {key: one[key] for key in ("lr", "min_lr", "warmup_epochs", "epochs")}
            got = np.array([learning_rate(float(epoch), **shape) for epoch in wanted[name][:, 0]])
            assert np.abs(got - wanted[name][:, 1]).max() <= 1e-12 * max(1, wanted[name][:, 1].max())
            assert np.allclose(got * 0.65**13, wanted[name][:, 2], rtol=0, atol=1e-12)
            assert peak_lr(one["blr"], one["effective_batch"]) == pytest.approx(one["lr"], abs=1e-15)
