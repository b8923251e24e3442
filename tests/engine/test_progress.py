"""What a person reads while training."""

import logging
from typing import Any

import pytest

from mimkit.engine.progress import DataWatch, Progress


def row(step: int, data: float = 0.01, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step / 10,
        "loss": 0.5,
        "lr": 1e-3,
        "images_per_second": 80.0,
        "seconds": 0.1,
        "data_seconds": data,
        **more,
    }


def test_a_line_tells_speed_share_of_peak_data_share_loss_and_time_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress(total=610, log_every=10, bar=False)
    for step in range(1, 11):
        progress.follow(row(step, peak_share=0.634))
    (record,) = caplog.records
    assert record.message == (
        "step 10/610  epoch 1.00  lr 1.00e-03  loss 0.5000  80.0 images/s  63% of peak  data 10%  left 0:01:00"
    )


def test_a_loss_that_is_not_finite_can_be_shown() -> None:
    progress = Progress(total=5, log_every=1, bar=False)
    progress.follow(row(1, loss=float("nan")))
    assert "loss nan" in progress.describe(row(1, loss=float("nan")))


def test_the_bar_can_be_drawn_and_closed(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(total=3, log_every=1, bar=True)
    for step in range(1, 4):
        progress.follow(row(step))
    progress.close()
    assert "3/3" in (said := capsys.readouterr().err) and "80.0 images/s" in said and "left 0:00:00" in said


def test_a_starving_loader_is_named_once_an_episode_with_what_to_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = DataWatch()

    def hundred(data: float) -> int:
        for step in range(100):
            watch.follow(row(step, data))
        return sum(record.levelno == logging.WARNING for record in caplog.records)

    assert hundred(0.01) == 0
    assert hundred(0.06) == 1
    assert (
        "0.060 s (60 %)" in caplog.text
        and "data.workers=" in caplog.text
        and "mimkit data prepare" in caplog.text
    )
    assert hundred(0.06) == 1
    assert hundred(0.015) == 1  # better, but not over
    assert hundred(0.005) == 1
    assert hundred(0.06) == 2
