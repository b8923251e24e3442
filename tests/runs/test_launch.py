"""A job in submitit's hands, on this machine: two processes, preempted, put back into the queue, brought to its end."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from small_runs import SMALL, losses, rows

import mimkit
from mimkit.cli import main
from mimkit.engine import checkpoint

pytest.importorskip("submitit")
SETTINGS = [*SMALL, "train.epochs=10", "train.micro_batch=8", "train.checkpoint_every=1000"]  # 30 steps


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def tasks_of(job_id: str) -> list[int]:
    """The processes of a local job, which are children of its controller."""
    return [int(number) for number in Path(f"/proc/{job_id}/task/{job_id}/children").read_text().split()]


def wait_for(count: int, run: Path, job: object) -> None:
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len(rows(run)) < count:
        assert not job.done() and time.monotonic() < deadline, log(run)  # type: ignore[attr-defined]
        time.sleep(0.02)


def log(run: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((run / "jobs").glob("*.out")))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the tasks of a job through /proc")
@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_preempted_job_saves_comes_back_and_ends_as_if_nothing_had_been(
    parallel: str, few: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = [f"data.path={few}", f"train.run={run}", f"train.parallel={parallel}", *SETTINGS, "tasks=2"]
    launched = mimkit.launch("pretrain", "mae_tiny", words, "local")
    wait_for(4, run, launched.job)
    for task in tasks_of(launched.id):  # what SLURM does with all tasks before the job's time is up
        os.kill(task, signal.SIGUSR2)
    launched.job.wait()
    said = log(run)
    assert launched.job.results()[0].startswith("Done: 30 steps"), said
    assert "Stopped as asked after step" in said and "Requeued job" in said and "Resumed" in said
    assert "terminate called" not in said and "Traceback" not in said

    assert main(["pretrain", "mae_tiny", f"data.path={few}", f"train.run={tmp_path / 'one'}", *SETTINGS]) == 0
    if parallel == "ddp":
        assert losses(run) == losses(tmp_path / "one")
    assert losses(run) == pytest.approx(losses(tmp_path / "one"), rel=2e-4)


def test_a_job_begins_from_the_command_line_fine_tunes_and_ends(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, run = tmp_path / "first", tmp_path / "run"
    pretrain = ["pretrain", "mae_tiny", f"data.path={faces}", f"train.run={first}", *SMALL, "train.epochs=1"]
    assert main(pretrain) == 0
    words = [
        "finetune",
        "finetune_vit_tiny",
        f"encoder.init={first}",
        f"data.path={faces}",
        f"train.run={run}",
    ]
    words += ["train.epochs=1", "data.workers=0", "log.writers=[]", "--launch", "local"]
    capsys.readouterr()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"Run folder {run}" in said and "kill " in said
    deadline = time.monotonic() + 120
    while not list((run / "jobs").glob("*_result.pkl")):
        assert time.monotonic() < deadline, log(run)
        time.sleep(0.1)
    begun = checkpoint.read_tensors(run / "checkpoints" / "step-0")
    given = checkpoint.read_tensors(first / "checkpoints" / "step-12")
    assert torch.equal(begun["encoder.blocks.0.mlp.fc1.weight"], given["encoder.blocks.0.mlp.fc1.weight"])
    assert "val/top1" in rows(run)[-1]
