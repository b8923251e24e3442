"""Steps that are not finite: left out, noted, saved; and the way back when they do not end."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from engine_toy import Toy, ToyBatch, ToyLoss, train
from torch import Tensor

from mimkit.engine import checkpoint
from mimkit.engine.checkpoint import EMA, MODEL, OPTIMISER
from mimkit.engine.nonfinite import tensors_of
from mimkit.engine.run_folder import read_rows
from mimkit.engine.steps import step_seed
from mimkit.errors import UserError

NAN = float("nan")


class Explosive(Toy):
    """Its mixer overflows on images of brightness 1e20, as attention does in fp16; the images themselves are finite."""

    def forward(self, batch: ToyBatch) -> ToyLoss:
        loss = super().forward(batch)
        return replace(loss, total=loss.total + self.mixer[1](batch.images.mean() * 1e19) * 0)


def spoiled(bad_steps: set[int], value: float = NAN) -> Callable[[int, ToyBatch], ToyBatch]:
    def spoil(step: int, batch: ToyBatch) -> ToyBatch:
        return replace(batch, images=torch.full_like(batch.images, value)) if step + 1 in bad_steps else batch

    return spoil


def files(run: Path, step: int) -> list[dict[str, Tensor]]:
    return [
        checkpoint.read_tensors(checkpoint.folder_of(run, step), name) for name in (MODEL, OPTIMISER, EMA)
    ]


def test_a_bad_step_changes_neither_weights_nor_moments_nor_the_average(tmp_path: Path) -> None:
    train(tmp_path, 8, spoil=spoiled({6}), checkpoint_every=1, keep=9, ema=0.9)
    for before, after in zip(files(tmp_path, 5), files(tmp_path, 6), strict=True):
        assert all(
            torch.equal(before[name], after[name]) for name in before if not name.startswith("teacher")
        )
    assert not torch.equal(files(tmp_path, 6)[0]["conv.weight"], files(tmp_path, 7)[0]["conv.weight"])
    state = checkpoint.read_state(checkpoint.folder_of(tmp_path, 8))
    assert (state.bad_steps, state.bad_in_a_row) == ((6,), 0)


def test_a_bad_step_is_noted_with_its_samples_and_its_row_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, 8, spoil=spoiled({6}))
    (line,) = read_rows(tmp_path / "nonfinite.jsonl")
    assert (line["step"], line["ids"], line["module"], line["loss"]) == (
        6,
        [20, 21, 22, 23],
        "the images",
        "nan",
    )
    assert (
        line["gradient"] == "conv.weight"
    )  # the first of all, since a loss that is NaN spoils every gradient
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if row.get("nonfinite")] == [6]
    assert rows[5]["loss"] is None and len(rows) == 8
    assert "Step 6 was not finite" in caplog.text and "20, 21, 22, 23" in caplog.text


def test_the_first_bad_module_is_named(tmp_path: Path) -> None:
    train(tmp_path, 6, spoil=spoiled({4}, 1e20), module=Explosive())
    (line,) = read_rows(tmp_path / "nonfinite.jsonl")
    assert line["module"] == "mixer.1"


def test_what_was_saved_of_a_bad_step_replays_it(tmp_path: Path) -> None:
    train(tmp_path, 8, accumulate=2, spoil=spoiled({6}, 1e30), module=Toy())
    (line,) = read_rows(tmp_path / "nonfinite.jsonl")
    folder = tmp_path / line["saved"]
    state = json.loads((folder / "state.json").read_text())
    assert state["seeds"] == [step_seed(0, 5, place) for place in state["places"]]
    assert state["weights_of_step"] == 6
    module = Toy()
    module.load_state_dict(checkpoint.read_tensors(folder, MODEL))
    for place, seed in zip(state["places"], state["seeds"], strict=True):
        tensors = checkpoint.read_tensors(folder, f"batch-{place}.safetensors")
        torch.manual_seed(seed)
        assert not torch.isfinite(module(ToyBatch(tensors["images"], tensors["ids"])).total)


def test_one_bad_micro_batch_leaves_the_whole_step_out_and_only_it_is_named(tmp_path: Path) -> None:
    def spoil(step: int, batch: ToyBatch) -> ToyBatch:
        bad = 20 in batch.ids
        return replace(batch, images=batch.images * NAN) if bad else batch

    train(tmp_path, 6, accumulate=2, spoil=spoil, checkpoint_every=1, keep=9)
    (line,) = read_rows(tmp_path / "nonfinite.jsonl")
    assert (line["step"], line["ids"], line["places"]) == (3, [20, 21, 22, 23], [1])
    assert [path.name for path in sorted((tmp_path / line["saved"]).glob("batch-*"))] == [
        "batch-1.safetensors"
    ]
    before, after = files_without_average(tmp_path, 2), files_without_average(tmp_path, 3)
    assert torch.equal(before["mixer.0.weight"], after["mixer.0.weight"])


def files_without_average(run: Path, step: int) -> dict[str, Tensor]:
    return checkpoint.read_tensors(checkpoint.folder_of(run, step))


class Fickle:
    """Spoils steps 8 to 10, but only the first `times` times that they come by."""

    def __init__(self, times: int) -> None:
        self.left = dict.fromkeys((8, 9, 10), times)

    def __call__(self, step: int, batch: ToyBatch) -> ToyBatch:
        if self.left.get(step + 1, 0) > 0:
            self.left[step + 1] -= 1
            return replace(batch, images=batch.images * NAN)
        return batch


def test_after_some_in_a_row_the_run_goes_back_and_on_at_half_the_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = train(tmp_path, 16, spoil=Fickle(1), rollback_after=3, keep=9)
    (rollback,) = outcome.state.rollbacks
    assert (rollback.from_step, rollback.to_step, rollback.lr_factor, rollback.bad_steps) == (
        10,
        5,
        0.5,
        (8, 9, 10),
    )
    assert "back from step 10 to step 5, on with 0.5 of the learning rate" in caplog.text
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 17))
    assert not any(row.get("nonfinite") for row in rows)
    assert [line["step"] for line in read_rows(tmp_path / "nonfinite.jsonl")] == [8, 9, 10]
    train(tmp_path / "calm", 16)
    calm = read_rows(tmp_path / "calm" / "metrics.jsonl")
    assert [row["lr"] for row in rows] == [row["lr"] * (0.5 if row["step"] > 5 else 1.0) for row in calm]


def test_a_rollback_survives_a_kill_right_after_it(tmp_path: Path) -> None:
    train(tmp_path / "whole", 16, spoil=Fickle(1), rollback_after=3, keep=9)
    train(tmp_path / "killed", 16, spoil=Fickle(1), rollback_after=3, keep=9)
    for step in (10, 15, 16):  # as if it had been killed before any later checkpoint
        checkpoint.drop_after(tmp_path / "killed", step - 1)
    state = checkpoint.read_state(checkpoint.latest_good(tmp_path / "killed"))
    assert (state.step, state.lr_factor, len(state.rollbacks)) == (5, 0.5, 1)
    train(tmp_path / "killed", 16, resume=True, keep=9)
    whole, killed = (
        [row["loss"] for row in read_rows(tmp_path / name / "metrics.jsonl")] for name in ("whole", "killed")
    )
    assert whole == killed


def test_a_rollback_that_does_not_help_goes_further_back_and_gives_up_in_the_end(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"3 steps in a row up to step 10, after 2 rollbacks and with .* at 0.25"
    ):
        train(tmp_path, 16, spoil=spoiled({8, 9, 10}), rollback_after=3, max_rollbacks=2, keep=9)
    state = checkpoint.read_state(checkpoint.latest_good(tmp_path))
    assert [rollback.to_step for rollback in state.rollbacks] == [5, 0]


def test_a_checkpoint_inside_a_bad_streak_is_no_place_to_go_back_to(tmp_path: Path) -> None:
    outcome = train(tmp_path, 16, spoil=Fickle(1), rollback_after=3, keep=9, checkpoint_every=3)  # saved at 9
    assert [rollback.to_step for rollback in outcome.state.rollbacks] == [6]


def test_only_a_few_bad_steps_are_saved_but_all_are_noted(tmp_path: Path) -> None:
    train(tmp_path, 16, spoil=spoiled(set(range(1, 16, 2))))
    assert len(read_rows(tmp_path / "nonfinite.jsonl")) == 8
    assert len(list((tmp_path / "nonfinite").glob("step-*"))) == 5


@dataclass(frozen=True)
class Nested:
    images: Tensor
    targets: dict[str, list[Tensor]]
    name: str = "not a tensor"


def test_batches_of_any_form_are_flattened_by_dotted_names() -> None:
    flat = tensors_of(Nested(torch.zeros(2), {"boxes": [torch.ones(1), torch.ones(3)]}))
    assert {name: tuple(tensor.shape) for name, tensor in flat.items()} == {
        "images": (2,),
        "targets.boxes.0": (1,),
        "targets.boxes.1": (3,),
    }


def test_on_a_gpu_where_numbers_come_late_the_same_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "at once", 16, spoil=Fickle(1), ema=0.9)
    monkeypatch.setattr("mimkit.engine.loop.lateness", lambda _: 3)
    late = train(tmp_path / "late", 16, spoil=Fickle(1), ema=0.9)
    rows = [
        [
            {key: row[key] for key in ("step", "loss", "lr", "grad_norm")}
            for row in read_rows(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("at once", "late")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 16
    assert late.state == checkpoint.read_state(checkpoint.latest_good(tmp_path / "at once"))
    lines = read_rows(tmp_path / "late" / "nonfinite.jsonl")
    assert [line["step"] for line in lines] == [8, 9, 10]
    saved = json.loads((tmp_path / "late" / lines[0]["saved"] / "state.json").read_text())
    assert saved["weights_of_step"] == 10  # read before the checkpoint of step 10, with the weights of then


def test_late_numbers_still_lead_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimkit.engine.loop.lateness", lambda _: 3)
    outcome = train(tmp_path, 16, spoil=Fickle(1), rollback_after=2, checkpoint_every=7)
    (rollback,) = outcome.state.rollbacks
    assert (rollback.to_step, rollback.bad_steps) == (7, (8, 9))
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == list(range(1, 17))
