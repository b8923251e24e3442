"""A job in submitit's hands, on this machine: two processes, preempted, put back into the queue, brought to its end."""

import contextlib
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


def wait_for(count: int, run: Path) -> None:
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len(rows(run)) < count:
        assert time.monotonic() < deadline, log(run)
        time.sleep(0.02)


def log(run: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((run / "jobs").glob("*.out")))


def tell_all_tasks(run: Path) -> None:
    """SIGUSR2 for every process of the job: what SLURM sends before its time is up."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if (
                b"submitit.core._submit" in words
                and str(run / "jobs").encode() in words
                and b"python" in words[0]
            ):
                os.kill(int(entry.name), signal.SIGUSR2)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for SLURM: runs a job's tasks on this machine, and once more when it is put back into the queue."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in TOOLS.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.setenv("TOOLS", str(tools))


TOOLS = {
    "sbatch": """#!/bin/bash
export SLURM_JOB_ID=4711 SLURM_JOB_NODELIST=localhost SLURM_NTASKS=2 SLURM_JOB_NUM_NODES=2
echo Submitted batch job 4711
(until bash $1 && [ ! -e $TOOLS/again ]; do rm $TOOLS/again || break; done; touch $TOOLS/over) > /dev/null 2>&1 &
""",
    "srun": """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --output ]] && { out=$2; shift; }; shift; done
out=${out/%j/$SLURM_JOB_ID}
for task in 0 1; do
  SLURM_PROCID=$task SLURM_NODEID=$task SLURM_LOCALID=0 "$@" >> ${out/\\%t/$task} 2>&1 &
done
wait
""",
    "scontrol": """#!/bin/bash
[[ "$*" == "requeue 4711" ]] && touch $TOOLS/again
""",
}


def assert_ended_as_if_nothing_had_been(run: Path, few: Path, parallel: str) -> None:
    said, one = log(run), run.with_name("one")
    assert "Stopped as asked after step" in said and "Requeued job" in said and "Resumed" in said, said
    assert "terminate called" not in said and "Traceback" not in said, said
    assert main(["pretrain", "mae_tiny", f"data.path={few}", f"train.run={one}", *SETTINGS]) == 0
    if parallel == "ddp":
        assert losses(run) == losses(one)
    assert losses(run) == pytest.approx(losses(one), rel=2e-4)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the tasks of a job through /proc")
@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_preempted_job_saves_comes_back_and_ends_as_if_nothing_had_been(
    parallel: str, few: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = [f"data.path={few}", f"train.run={run}", f"train.parallel={parallel}", *SETTINGS, "tasks=2"]
    launched = mimkit.launch("pretrain", "mae_tiny", words, "local")
    wait_for(4, run)
    tell_all_tasks(run)
    launched.job.wait()
    assert launched.job.results()[0].startswith("Done: 30 steps"), log(run)
    assert_ended_as_if_nothing_had_been(run, few, parallel)


@pytest.mark.parametrize("seconds", [0, 0.7])  # when torch is not loaded yet
def test_a_job_that_is_killed_as_soon_as_it_is_known_says_so_and_leaves(
    seconds: float, few: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    launched = mimkit.launch(
        "pretrain", "mae_tiny", [f"data.path={few}", f"train.run={run}", *SETTINGS, "tasks=2"], "local"
    )
    time.sleep(seconds)
    os.kill(int(launched.id), signal.SIGTERM)
    assert launched.job._process.wait(60) == 0
    said = f"Stopped, with nothing to save; continue with `mimkit pretrain {run} --resume`."
    assert log(run).count(said) == 1 and "Traceback" not in log(run)
    assert not (run / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the tasks of a job through /proc")
def test_a_job_on_two_nodes_of_a_stand_in_for_slurm_comes_back_too(
    slurm: None, few: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = [f"data.path={few}", f"train.run={run}", *SETTINGS, "nodes=2", "gpus=0"]
    assert main(["pretrain", "mae_tiny", *words, "--launch", "slurm"]) == 0
    wait_for(4, run)
    tell_all_tasks(run)
    deadline = time.monotonic() + 200
    while not (tmp_path / "tools" / "over").exists():
        assert time.monotonic() < deadline, log(run)
        time.sleep(0.1)
    assert_ended_as_if_nothing_had_been(run, few, "ddp")


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
