"""Checkpoints are whole or not there, and bring everything back into its own memory layout."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mimkit.engine import checkpoint
from mimkit.engine.checkpoint import EMA, MODEL, OPTIMISER, STATE, Rollback, State
from mimkit.engine.ema import MovingAverage
from mimkit.engine.optimiser import adamw, pretrain_groups, set_lr, update
from mimkit.engine.trainable import trainable_parameters
from mimkit.errors import DataError, UserError


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3).to(memory_format=torch.channels_last)
        self.head = nn.Linear(width, 2)
        self.register_buffer("table", torch.arange(4.0))


def trained(steps: int = 2) -> tuple[Net, torch.optim.AdamW]:
    torch.manual_seed(0)
    module = Net()
    optimiser = adamw(pretrain_groups(module, 0.05))
    for _ in range(steps):
        step(module, optimiser)
    return module, optimiser


def step(module: Net, optimiser: torch.optim.Optimizer) -> None:
    set_lr(optimiser, 0.01)
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)).to(
        memory_format=torch.channels_last
    )
    module.head(module.conv(images).mean((2, 3))).square().sum().backward()
    update(optimiser, torch.tensor(1.0), torch.tensor(True), None)
    optimiser.zero_grad()


def save_steps(run: Path, *steps: int) -> None:
    module, optimiser = trained()
    for number in steps:
        checkpoint.save(run, State(step=number), module, optimiser)


def test_everything_comes_back_to_the_bit_and_training_goes_on_the_same(tmp_path: Path) -> None:
    module, optimiser = trained()
    average = MovingAverage(trainable_parameters(module), 0.9)
    state = State(
        step=2, lr_factor=0.5, bad_steps=(1,), rollbacks=(Rollback(4, 2, 0.5, (3, 4)),), extra={"mean": [0.1]}
    )
    folder = checkpoint.save(tmp_path, state, module, optimiser, average)
    other = Net()
    their = adamw(pretrain_groups(other, 0.05))
    their_average = MovingAverage(trainable_parameters(other), 0.9)
    assert checkpoint.restore(folder, other, their, their_average) == state
    for one, two in ((module, optimiser), (other, their)):
        step(one, two)
    assert all(
        torch.equal(a, b)
        for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert all(torch.equal(their_average.weights[name], value) for name, value in average.weights.items())


def test_moments_return_in_the_memory_layout_of_their_weight(tmp_path: Path) -> None:
    module, optimiser = trained()
    folder = checkpoint.save(tmp_path, State(step=2), module, optimiser)
    other = Net()
    their = adamw(pretrain_groups(other, 0.05))
    checkpoint.restore(folder, other, their)
    weight = other.conv.weight
    assert weight.stride() == module.conv.weight.stride() != weight.contiguous().stride()
    for kind in ("exp_avg", "exp_avg_sq"):
        assert their.state[weight][kind].stride() == weight.stride()
        assert torch.equal(their.state[weight][kind], optimiser.state[module.conv.weight][kind])


def test_an_optimiser_that_has_not_stepped_is_saved_and_restored_empty(tmp_path: Path) -> None:
    module, optimiser = trained(0)
    folder = checkpoint.save(tmp_path, State(), module, optimiser)
    step(module, optimiser)
    checkpoint.restore(folder, module, optimiser)
    assert not optimiser.state


def test_tied_weights_are_saved_under_both_names(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    tensors = checkpoint.read_tensors(checkpoint.save(tmp_path, State(), module))
    assert torch.equal(tensors["0.weight"], tensors["1.weight"])


def _truncate(folder: Path) -> None:
    path = folder / MODEL
    path.write_bytes(path.read_bytes()[:-7])


def _flip(folder: Path) -> None:
    data = bytearray((folder / OPTIMISER).read_bytes())
    data[-3] ^= 1
    (folder / OPTIMISER).write_bytes(data)


DAMAGE = {
    "truncated": _truncate,
    "one bit flipped": _flip,
    "weights missing": lambda folder: (folder / MODEL).unlink(),
    "state missing": lambda folder: (folder / STATE).unlink(),
    "state torn": lambda folder: (folder / STATE).write_text('{"step": 3, "fil'),
    "state of somebody else": lambda folder: (folder / STATE).write_text("[1, 2]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    save_steps(tmp_path, 0, 2, 10)
    damage(tmp_path / "checkpoints" / "step-10")
    assert checkpoint.latest_good(tmp_path).name == "step-2"
    assert "step-10" in caplog.text and "damaged" in caplog.text


def test_steps_are_ordered_by_number_and_half_written_folders_do_not_count(tmp_path: Path) -> None:
    save_steps(tmp_path, 9, 10, 100)
    (tmp_path / "checkpoints" / ".writing-step-200").mkdir()
    (tmp_path / "checkpoints" / "step-best").mkdir()
    assert [path.name for path in checkpoint.saved(tmp_path)] == ["step-9", "step-10", "step-100"]
    assert checkpoint.latest_good(tmp_path).name == "step-100"


def test_without_a_checkpoint_and_without_a_whole_one_the_errors_differ(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.latest_good(tmp_path)
    save_steps(tmp_path, 3)
    _truncate(tmp_path / "checkpoints" / "step-3")
    with pytest.raises(DataError, match=r"^The only checkpoint in .* is not whole"):
        checkpoint.latest_good(tmp_path)
    save_steps(tmp_path, 4)
    _truncate(tmp_path / "checkpoints" / "step-4")
    with pytest.raises(DataError, match=r"^None of the 2 checkpoints in .* is whole"):
        checkpoint.latest_good(tmp_path)


def test_retention_keeps_the_newest_and_step_zero_and_clears_away_half_written_ones(tmp_path: Path) -> None:
    save_steps(tmp_path, 0, 5, 10, 15)
    (tmp_path / "checkpoints" / ".writing-step-12").mkdir()
    checkpoint.prune(tmp_path, 2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-0",
        "step-10",
        "step-15",
    ]
    checkpoint.prune(tmp_path, 1)
    assert [path.name for path in checkpoint.saved(tmp_path)] == ["step-0", "step-15"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_steps(tmp_path, 5)
    _truncate(tmp_path / "checkpoints" / "step-5")
    save_steps(tmp_path, 5)
    assert checkpoint.check(tmp_path / "checkpoints" / "step-5").step == 5


def test_a_failing_disk_leaves_the_last_good_checkpoint_and_no_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(tmp_path, 5)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(
        UserError, match="the disk is full; the last good one, step 5, is untouched"
    ) as caught:
        save_steps(tmp_path, 10)
    assert "--resume" in str(caught.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-5"]
    assert checkpoint.latest_good(tmp_path).name == "step-5"


def test_a_full_disk_leaves_the_last_good_checkpoint(small_disk: Path) -> None:
    save_steps(small_disk, 5)
    big = nn.Linear(300, 300)
    with pytest.raises(UserError, match="the disk is full"):
        checkpoint.save(small_disk, State(step=10), big)
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["step-5"]
    assert checkpoint.check(checkpoint.latest_good(small_disk)).step == 5


def test_another_model_is_refused_in_a_sentence(tmp_path: Path) -> None:
    module, optimiser = trained()
    folder = checkpoint.save(tmp_path, State(step=2), module, optimiser)
    with pytest.raises(DataError, match="saved by another model"):
        checkpoint.restore(folder, Net(width=4))
    with pytest.raises(DataError, match=f"has no {EMA}"):
        checkpoint.restore(folder, module, optimiser, MovingAverage(trainable_parameters(module), 0.9))


def test_the_state_can_be_rewritten_without_touching_the_tensors(tmp_path: Path) -> None:
    module, optimiser = trained()
    folder = checkpoint.save(tmp_path, State(step=2), module, optimiser)
    checkpoint.rewrite_state(folder, State(step=2, lr_factor=0.25))
    assert checkpoint.check(folder) == replace(State(step=2), lr_factor=0.25)
