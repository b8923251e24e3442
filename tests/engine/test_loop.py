"""What the loop does with steps, losses, averages and evaluators."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_toy import STEPS_PER_EPOCH, Toy, ToyBatch, ToySkip, image, train
from torch import nn

from mimkit.engine import checkpoint
from mimkit.engine.options import About
from mimkit.engine.run_folder import read_rows
from mimkit.engine.schedule import Schedule
from mimkit.engine.steps import step_seed
from mimkit.engine.trainable import Evaluator
from mimkit.errors import DataError


def test_accumulated_micro_batches_equal_one_large_batch_to_rounding(tmp_path: Path) -> None:
    for name, micro, accumulate in (("large", 8, 1), ("small", 2, 4)):
        train(tmp_path / name, 10, accumulate, module=Toy(dropout=0.0), micro=micro)
    large, small = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("large", "small"))
    for one, other in zip(large, small, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)


def test_each_step_has_a_row_with_what_scripts_rely_on(tmp_path: Path) -> None:
    train(tmp_path, steps=12, accumulate=2, about=About(flops_per_image=1e6))
    rows = read_rows(tmp_path / "metrics.jsonl")
    schedule = Schedule(3e-3, 12 / STEPS_PER_EPOCH, STEPS_PER_EPOCH, warmup_epochs=0.5)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["lr"] for row in rows] == [schedule.at(step) for step in range(12)]
    for row in rows:
        assert {"loss", "pixel", "aim", "grad_norm", "seconds", "data_seconds", "peak_share"} <= set(row)
        assert row["epoch"] == row["step"] / STEPS_PER_EPOCH
        assert row["images_per_second"] == pytest.approx(8 / row["seconds"])
        assert row["loss"] == pytest.approx(row["pixel"] + 0.1 * row["aim"], rel=1e-6)


def test_the_norm_is_logged_before_clipping(tmp_path: Path) -> None:
    train(tmp_path / "free", 2)
    train(tmp_path / "clipped", 2, clip=1e-3)
    first, clipped = (read_rows(tmp_path / name / "metrics.jsonl")[0] for name in ("free", "clipped"))
    assert first["grad_norm"] == clipped["grad_norm"] > 1e-3


def test_the_moving_average_follows_what_is_trained_and_nothing_else(tmp_path: Path) -> None:
    module = Toy()
    outcome = train(tmp_path, 3, module=module, ema=0.9, checkpoint_every=1, keep=9)
    steps = [checkpoint.read_tensors(checkpoint.folder_of(tmp_path, step)) for step in range(4)]
    kept = checkpoint.read_tensors(outcome.checkpoint, checkpoint.EMA)
    assert set(kept) == {name for name, _ in module.named_parameters() if not name.startswith("teacher")}
    for name, value in kept.items():
        wanted = steps[0][name]
        for step in steps[1:]:
            wanted = wanted.lerp(step[name], 0.1)
        assert torch.allclose(value, wanted, rtol=1e-6, atol=1e-8)


def test_what_is_frozen_is_saved_and_moved_only_by_after_step(tmp_path: Path) -> None:
    module = Toy()
    before = module.teacher.bias.clone()
    outcome = train(tmp_path, 6, module=module)
    assert module.steps_seen == [1, 2, 3, 4, 5, 6]
    assert not module.teacher.bias.requires_grad
    saved = checkpoint.read_tensors(outcome.checkpoint)
    assert torch.equal(saved["teacher.bias"], before)
    assert torch.equal(saved["teacher.weight"], module.teacher.weight)


def test_evaluators_join_the_row_of_their_step_and_see_the_module_at_rest(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []

    def judge(module: nn.Module, step: int) -> dict[str, float]:
        seen.append((step, module.training))
        return {"probe": step / 10}

    module = Toy()
    train(tmp_path, 10, module=module, evaluators=(Evaluator("probe", 4, judge),))
    assert seen == [(4, False), (8, False), (10, False)]
    assert {
        row["step"]: row.get("probe") for row in read_rows(tmp_path / "metrics.jsonl") if "probe" in row
    } == {
        4: 0.4,
        8: 0.8,
        10: 1.0,
    }
    assert module.training


def test_evaluators_that_work_together_join_the_same_row(tmp_path: Path) -> None:
    both = (
        Evaluator("alone", 2, lambda *_: {"a": 1.0}),
        Evaluator("all", 3, lambda *_: {"b": 2.0}, together=True),
    )
    train(tmp_path, 6, evaluators=both)
    found = [(row.get("a"), row.get("b")) for row in read_rows(tmp_path / "metrics.jsonl")]
    assert found == [(None, None), (1, None), (None, 2), (1, None), (None, None), (1, 2)]


def test_an_evaluator_does_not_disturb_the_run(tmp_path: Path) -> None:
    def noisy(_module: nn.Module, _step: int) -> dict[str, float]:
        return {"noise": float(torch.rand(()))}

    train(tmp_path / "plain", 8)
    train(tmp_path / "watched", 8, evaluators=(Evaluator("noisy", 1, noisy),))
    plain, watched = (
        [row["loss"] for row in read_rows(tmp_path / name / "metrics.jsonl")] for name in ("plain", "watched")
    )
    assert plain == watched


def test_an_evaluator_may_not_take_the_name_of_a_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uses the name 'loss'"):
        train(tmp_path, 2, evaluators=(Evaluator("bad", 1, lambda *_: {"loss": 1.0}),))


def replaced(step: int, batch: ToyBatch) -> ToyBatch:
    """In every third step one image could not be read."""
    return (
        replace(batch, skipped=(ToySkip(step, f"broken/{step}.png", "truncated"),))
        if step % 3 == 0
        else batch
    )


def test_unreadable_images_are_listed_counted_and_not_listed_twice_after_a_resume(tmp_path: Path) -> None:
    train(tmp_path, 16, spoil=replaced, keep=3)
    for step in (16, 15):
        (tmp_path / "checkpoints" / f"step-{step}" / "state.json").unlink()
    state = train(tmp_path, 16, spoil=replaced, resume=True).state
    rows = read_rows(tmp_path / "skipped.jsonl")
    assert [row["step"] for row in rows] == [1, 4, 7, 10, 13, 16]
    assert rows[1] == {"step": 4, "id": 3, "name": "broken/3.png", "reason": "truncated"}
    assert (state.images, state.skipped_images) == (64, 6)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl") if row.get("replaced_images")] == [
        1,
        4,
        7,
        10,
        13,
        16,
    ]


def test_too_many_unreadable_images_end_the_run_after_an_epoch(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"4 of 44 images \(9%\) could not be read, more than the 5%"):
        train(tmp_path, 16, spoil=replaced, bad_share=0.05)
    assert len(read_rows(tmp_path / "skipped.jsonl")) == 4


def test_a_loader_that_ends_early_is_our_fault_and_says_so(tmp_path: Path) -> None:
    from mimkit.engine.feed import Feed

    feed = Feed(lambda _: iter([ToyBatch(image(0)[None], torch.arange(1))]), 0)
    feed.next()
    with pytest.raises(RuntimeError, match="ended before the schedule"):
        feed.next()


def test_seeds_differ_between_steps_and_micro_batches_and_not_between_calls() -> None:
    seeds = {step_seed(seed, step, place) for seed in range(5) for step in range(20) for place in range(8)}
    assert len(seeds) == 5 * 20 * 8
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)
    torch.manual_seed(step_seed(2**31, 10**7, 4095))
