"""Sharded over processes, training is the same to rounding, and files hold whole tensors: FSDP beside DDP."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import Toy, judge, train
from test_resume import REST_AT, STEPS, command, losses, start_two, wait_for_rows
from torch import Tensor, nn

from mimkit.engine import checkpoint, shards
from mimkit.engine.optimiser import adamw, pretrain_groups
from mimkit.engine.run_folder import read_rows
from mimkit.engine.trainable import Evaluator

SETTINGS = {"ema": 0.9, "clip": 0.5}


def run_two(run: Path, settings: dict[str, Any], *more: str) -> None:
    """Two processes, to the end."""
    processes = start_two(command(run, settings, *more))
    try:
        said = [process.communicate(timeout=180)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    assert not any("terminate called" in one for one in said)


def tensors(run: Path, step: int = STEPS) -> dict[str, Tensor]:
    folder = run / "checkpoints" / f"step-{step}"
    files = (checkpoint.MODEL, checkpoint.EMA, checkpoint.OPTIMISER)
    return {
        f"{name}/{key}": value
        for name in files
        for key, value in checkpoint.read_tensors(folder, name).items()
    }


def assert_same_to_rounding(run: Path, other: Path, tolerance: float) -> None:
    for ours, theirs in zip(losses(run), losses(other), strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance), ours["step"]
    first, second = tensors(run), tensors(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=100 * tolerance, msg=name)


def assert_same_files(run: Path, other: Path, step: int) -> None:
    first, second = tensors(run, step), tensors(other, step)
    assert {name: value.shape for name, value in first.items()} == {
        name: value.shape for name, value in second.items()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that accumulates what two of them share."""
    run = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    train(run / "run", STEPS, accumulate=2, **SETTINGS)  # type: ignore[arg-type]
    return run / "run"


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 1e-4)])
def test_two_processes_with_shards_equal_one_with_all_of_it(
    precision: str, tolerance: float, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "precision": precision}
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, 12, accumulate=4, evaluators=(Evaluator("probe", 6, judge),), **settings)  # type: ignore[arg-type]
    run_two(two, {**settings, "accumulate": 2, "steps": 12, "parallel": "fsdp"})
    ours, theirs = (read_rows(run / "metrics.jsonl") for run in (two, one))
    for name in ("loss", "grad_norm", "judged"):
        first, second = ([row[name] for row in rows if name in row] for rows in (ours, theirs))
        assert first == pytest.approx(second, rel=tolerance), name
    assert_same_files(one, two, 12)


def test_a_checkpoint_of_shards_goes_on_with_shards_whole_on_two_or_alone(
    whole: Path, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    processes = start_two(command(begun, {**SETTINGS, "parallel": "fsdp", "slow": 0.02, "rest_at": REST_AT}))
    wait_for_rows(begun, 12)
    for process in processes:
        process.kill()
        process.communicate()
    for name in ("shards", "ddp", "alone"):
        shutil.copytree(begun, tmp_path / name)
    run_two(tmp_path / "shards", {**SETTINGS, "parallel": "fsdp"}, "--resume")
    run_two(tmp_path / "ddp", SETTINGS, "--resume")
    train(tmp_path / "alone", STEPS, accumulate=2, resume=True, **SETTINGS)  # type: ignore[arg-type]
    for name in ("shards", "ddp", "alone"):
        assert_same_to_rounding(tmp_path / name, whole, 2e-6)


def test_a_checkpoint_of_one_process_goes_on_with_shards_on_two(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for step in (STEPS, STEPS - 5):  # back to an earlier checkpoint
        shutil.rmtree(run / "checkpoints" / f"step-{step}", ignore_errors=True)
    assert checkpoint.latest_good(run).name == "step-0"
    run_two(run, {**SETTINGS, "parallel": "fsdp"}, "--resume")
    assert_same_to_rounding(run, whole, 2e-6)
    assert (
        json.loads((run / "checkpoints" / f"step-{STEPS}" / "state.json").read_text())["parallel"] == "fsdp"
    )


def test_one_process_with_fsdp_is_one_process(tmp_path: Path) -> None:
    train(tmp_path / "plain")
    train(tmp_path / "fsdp", parallel="fsdp")
    assert losses(tmp_path / "plain") == losses(tmp_path / "fsdp")


def test_the_parts_that_are_cut_are_the_members_of_module_lists_inner_ones_first() -> None:
    inner = nn.ModuleList([nn.Linear(2, 2), nn.Identity()])
    outer = nn.Sequential()
    outer.append(nn.Linear(2, 2))
    outer.inner = inner
    model = nn.Module()
    model.stages = nn.ModuleList([outer, nn.ModuleList([nn.Linear(3, 3)])])
    model.twice = nn.ModuleList([outer])
    assert shards.blocks(model) == [inner[0], outer, model.stages[1][0]]


def test_a_hollow_copy_takes_no_memory_for_weights_and_shares_the_buffers() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module[0].bias.requires_grad_(False)
    twin = shards.hollow(module)
    assert all(parameter.is_meta for parameter in twin.parameters())
    assert not twin[0].bias.requires_grad and twin[0].weight.requires_grad
    module(torch.randn(5, 3))
    with shards.filled(twin, module.eval()) as filled:
        images = torch.randn(2, 3)
        assert torch.equal(filled(images), module(images)) and not filled.training
        assert filled[0].weight.requires_grad and not filled[0].bias.requires_grad
    assert all(parameter.is_meta for parameter in twin.parameters())


def test_an_optimiser_that_has_made_steps_is_refused() -> None:
    module = Toy()
    optimiser = adamw(pretrain_groups(module, 0.05))
    module.conv.weight.grad = torch.ones_like(module.conv.weight)
    optimiser.step()
    with pytest.raises(ValueError, match="made steps"):
        shards.shard(module, optimiser, torch.device("cpu"))
