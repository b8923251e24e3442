"""The benchmark runner on sizes that say nothing about speed: rows in the agreed form, pairs that compute the same."""

import json
from pathlib import Path

import pytest

from benchmarks import pairs
from benchmarks.__main__ import BENCHMARKS, line, main
from benchmarks.mae_step import QUICK, inputs, mask_of
from benchmarks.pairs import Aim, Lap, Measured, Options, Row

FIELDS = {"name", "metric", "ours", "theirs", "ratio", "unit", "settings"}
QUICKLY = ("--quick", "--rounds", "1", "--threads", "1")


def test_quick_rows_have_the_agreed_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    assert main(["optimiser_step", "pipeline_500", *QUICKLY, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert {row["name"] for row in rows} == {"optimiser_step", "pipeline_500"}
    for row in rows:
        assert set(row) == FIELDS
        assert row["ratio"] == pytest.approx(
            row["ours"] / row["theirs"]
        )  # one pair: the medians are its numbers
        assert row["settings"]["rounds"] == 1
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + len(rows)
    assert "reached" not in "".join(table)  # small sizes prove nothing about an aim


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        pytest.param(
            "finetune_step",
            {"time_fp32", "peak_memory_fp32", "time_bf16", "peak_memory_bf16"},
            marks=pytest.mark.slow,
        ),
        (
            "mcmae_encoder",
            {
                f"{metric}_{precision}"
                for metric in ("time", "time_stage_1", "time_stage_2", "peak_memory")
                for precision in ("fp32", "bf16")
            },
        ),
        ("embed", {"time"}),
        pytest.param("onnx", {"time", "peak_memory"}, marks=pytest.mark.slow),
    ],
)
def test_a_model_and_its_counterpart_compute_the_same_and_are_timed(
    name: str, metrics: set[str], tmp_path: Path
) -> None:
    file = tmp_path / "rows.json"
    assert main([name, *QUICKLY, "--json", str(file)]) == 0  # they would not be raced otherwise
    rows = json.loads(file.read_text())
    assert {row["metric"] for row in rows} == metrics
    assert all(set(row) == FIELDS and row["ours"] > 0 and row["theirs"] > 0 for row in rows)


def test_a_mistyped_name_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline_50"]) == 2
    assert "Did you mean 'pipeline_500'?" in capsys.readouterr().err


def test_every_aim_belongs_to_a_benchmark_of_the_design() -> None:
    assert set(BENCHMARKS) >= {
        "mae_step_fp32",
        "mae_step_bf16",
        "mae_step_default",
        "mae_step_half_decoded",
        "mcmae_step",
        "mcmae_encoder",
        "optimiser_step",
        "pipeline_500",
        "pipeline_2000",
        "finetune_step",
        "embed",
        "onnx",
        "attention_statistics",
        "import",
    }
    assert [name for name, benchmark in BENCHMARKS.items() if not benchmark.aims] == [
        "mcmae_over_mae",
        "onnx",
    ]


def test_aims_speak_of_ratio_of_ours_or_of_the_difference() -> None:
    row = Row("x", "time", ours=1.2, theirs=1.0, ratio=1.2, unit="s")
    assert Aim(1.25).reached(row) and not Aim(1.15).reached(row)
    assert Aim(1.3, "ours").reached(row) and not Aim(1.1, "ours").reached(row)
    assert Aim(0.3, "difference").reached(row) and not Aim(0.1, "difference").reached(row)
    assert line(row, Aim(0.85), quick=False).endswith("<= 0.85: NOT REACHED")


def broken() -> dict[str, Lap]:
    raise ValueError("no such model")


def test_a_contender_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="no such model"):
        pairs.race(broken, broken, Options(threads=1), rounds=1)


class Stopped:
    """A contender whose laps take a second more each and return one value; it keeps the order of the calls."""

    def __init__(self, name: str, value: float, calls: list[str]) -> None:
        self.name, self.value, self.calls = name, value, calls

    def lap(self, metric: str) -> Measured:
        self.calls.append(self.name)
        return Measured(float(len(self.calls)), 1.0, self.value)


def test_the_two_alternate_and_swap_who_goes_first() -> None:
    calls: list[str] = []
    us, them = Stopped("us", 1.0, calls), Stopped("them", 1.0, calls)
    laps = pairs.alternate(us, them, "time", rounds=2, tolerance=0.0)
    assert calls == ["us", "them", "us", "them", "them", "us"]
    assert [(ours.seconds, theirs.seconds) for ours, theirs in laps] == [(3.0, 4.0), (6.0, 5.0)]


def test_contenders_that_compute_different_things_are_no_pair() -> None:
    us, them = Stopped("us", 1.0, []), Stopped("them", 1.02, [])
    with pytest.raises(RuntimeError, match="do not compute the same"):
        pairs.alternate(us, them, "time", rounds=1, tolerance=0.01)


def test_half_of_the_hidden_patches_are_decoded_and_the_visible_ones_are_those_of_least_noise() -> None:
    _, noise = inputs(QUICK)
    whole, half = mask_of(noise, QUICK, 1.0), mask_of(noise, QUICK, 0.5)
    assert whole.predict is None and half.predict is not None
    assert half.predict.shape[1] == whole.decoded.shape[1] // 2
    for image in range(noise.shape[0]):
        assert whole.visible[image].tolist() == sorted(noise[image].argsort()[:4].tolist())
        assert set(half.predict[image].tolist()) <= set(whole.decoded[image].tolist())


@pytest.mark.slow
def test_looking_at_attention_is_raced_against_a_plain_forward_pass(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert main(["attention_statistics", *QUICKLY, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [row["metric"] for row in rows] == ["time", "time_bf16", "peak_memory"]
    assert rows[2]["settings"]["images"] == "64 against 16"


@pytest.mark.slow
def test_our_step_and_that_of_transformers_give_one_loss() -> None:
    assert main(["mae_step_fp32", "mae_step_bf16", *QUICKLY]) == 0
