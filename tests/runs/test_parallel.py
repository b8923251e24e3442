"""One recipe on one process, on two with all of the model, on two with a share of it: the same losses."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from small_runs import answer, arguments, environment, launcher, losses, mimkit, rows

from mimkit.cli import main

ROUNDING = {"rel": 1e-6, "abs": 1e-6}
FSDP = "train.parallel=fsdp"


def forget(run: Path, copy: Path, step: int) -> Path:
    """A copy of `run` without the checkpoint of `step`."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / f"step-{step}")
    return copy


def test_shards_pretrain_like_one_process_and_checkpoints_go_both_ways(few: Path, tmp_path: Path) -> None:
    settings = [
        "train.epochs=3",
        "train.precision=fp32",
        "encoder.checkpointing=true",
        "encoder.name=vit:48x4x3",
    ]
    settings += ["train.ema=0.9", "optimiser.clip=0.5", "log.samples_every=4", "optimiser.layer_decay=0.9"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*arguments(few, one, *settings)]) == 0
    done = mimkit(*arguments(few, two, *settings, "train.micro_batch=4", FSDP), processes=2)
    assert done.returncode == 0, done.stderr
    assert losses(two) == pytest.approx(losses(one), **ROUNDING)
    assert rows(two)[-1]["trivial/model"] == pytest.approx(rows(one)[-1]["trivial/model"], **ROUNDING)
    assert (two / "samples" / "step-0000009.png").exists()

    alone = forget(two, tmp_path / "alone", 9)
    assert main(["pretrain", str(alone), "--resume"]) == 0
    assert losses(alone) == pytest.approx(losses(one), **ROUNDING)

    shared = forget(one, tmp_path / "shared", 9)  # its micro-batch of 16 is more than a process's share
    done = mimkit("pretrain", str(shared), "--resume", FSDP, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: Resumed under other circumstances") == 1  # which both processes notice
    assert losses(shared) == pytest.approx(losses(one), **ROUNDING)
    state = json.loads((shared / "checkpoints" / "step-9" / "state.json").read_text())
    assert (state["world"], state["parallel"], state["micro_batch"]) == (2, "fsdp", 8)


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("finetune_vit_tiny", ("task.mixup=0.8", "task.balance=true", "task.blocks=1.5", "train.ema=0.9")),
        pytest.param(
            "linear_probe_vit_base",  # LARS
            ("encoder.patch=8", "train.batch_size=32", "optimiser.clip=0.1"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_shards_finetune_and_probe_like_one_process(
    recipe: str, more: tuple[str, ...], faces: Path, tmp_path: Path
) -> None:
    words = ["finetune", recipe, f"data.path={faces}", "encoder.name=vit:48x3x3", "data.size=32", *more]
    words += ["train.precision=fp32", "log.evaluate_every=2", "data.workers=0", "train.micro_batch=16"]
    words += ["train.epochs=2", "schedule.warmup_epochs=1", "log.writers=[]", "encoder.drop_path=0"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*words, f"train.run={one}"]) == 0
    done = mimkit(*words, f"train.run={two}", FSDP, processes=2)
    assert done.returncode == 0, done.stderr
    assert losses(two) == pytest.approx(losses(one), **ROUNDING)
    assert "val/top1" in rows(two)[-1]


def test_a_mistake_that_all_processes_make_is_told_once(few: Path, tmp_path: Path) -> None:
    done = mimkit(*arguments(few, tmp_path / "run", "train.batch_size=15"), processes=2)
    assert done.returncode != 0
    assert (
        done.stderr.count("train.batch_size=15 does not divide over 2 processes; use train.batch_size=14")
        == 1
    )
    assert "Traceback" not in done.stderr.partition("torch/distributed")[0]
    done = mimkit("pretrain", "mae_tniy", processes=2)  # before they know of each other
    assert done.returncode != 0 and done.stderr.count("Did you mean 'mae_tiny'?") == 1


@pytest.mark.parametrize("late", [False, True])
def test_a_mistake_of_one_process_alone_is_told_and_not_what_follows_from_it(
    late: bool, few: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(ONE_FAILS.format(module="loop" if late else "replica", rank=1))
    command = [*launcher(2)[:-2], str(script), *arguments(few, tmp_path / "run", "train.epochs=1")]
    done = subprocess.run(
        command, env=environment(1), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode != 0
    assert done.stderr.count("mimkit: only here.") == 1, done.stderr
    assert "fault in mimkit" not in done.stderr


ONE_FAILS = """
import os, sys
import mimkit.engine.loop as loop
from mimkit.cli import main
from mimkit.errors import DataError

def fail(*_):
    raise DataError("only here.")

if os.environ["RANK"] == "{rank}":
    if "{module}" == "loop":
        loop.Loop.update = fail
    else:
        loop.Replica = fail
sys.exit(main())
"""


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_with_its_weights(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*arguments(few, first, "train.epochs=1")]) == 0
    more = ("train.epochs=1", f"encoder.init={first}", "train.seed=1")
    assert main([*arguments(few, second, *more)]) == 0
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "recipe.yaml").write_text((second / "recipe.yaml").read_text())
    code, said = answer(capsys, "pretrain", str(killed), "--resume")
    assert code == 0 and str(first) in said
    assert losses(killed) == losses(second)
