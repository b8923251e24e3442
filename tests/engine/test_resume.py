"""Killed at any moment, stopped on request, one process or two: the run continues to the same bits."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_toy import train

from mimkit.engine import checkpoint
from mimkit.engine.options import About
from mimkit.engine.run_folder import read_rows
from mimkit.errors import UserError

TOY = Path(__file__).with_name("engine_toy.py")
STEPS = 40
REST_AT = 36  # steps of runs that are to be killed, which is when they wait for it
PORTS = range(
    20_000, 32_000
)  # outside those that systems hand out by themselves, which another test may be given
EXACT = ("step", "epoch", "loss", "pixel", "aim", "lr", "grad_norm")  # a row without its times


def losses(run: Path) -> list[dict[str, Any]]:
    return [{key: row[key] for key in EXACT} for row in read_rows(run / "metrics.jsonl")]


def command(run: Path, settings: Mapping[str, Any], *more: str) -> list[str]:
    return [sys.executable, str(TOY), str(run), "--settings", json.dumps({"steps": STEPS, **settings}), *more]


def environment(rank: int = 0, world: int = 1, port: int = 0) -> dict[str, str]:
    plain = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    if world > 1:
        plain |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        plain |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return plain | {"OMP_NUM_THREADS": "1"}


def start_two(arguments: Sequence[str]) -> list[subprocess.Popen[str]]:
    """Two processes that find each other as those of torchrun do."""
    port = free_port()
    return [
        subprocess.Popen(arguments, env=environment(rank, 2, port), stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]


def free_port() -> int:
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):  # it is taken
            probe.bind(("127.0.0.1", port))
            return port


def wait_for_rows(run: Path, rows: int) -> None:
    deadline = time.monotonic() + 180
    while len(read_rows(run / "metrics.jsonl")) < rows:
        assert time.monotonic() < deadline, "the run has written no rows"
        time.sleep(0.02)


def last_weights(run: Path) -> bytes:
    return b"".join(
        (run / "checkpoints" / f"step-{STEPS}" / f"{name}.safetensors").read_bytes()
        for name in ("model", "optimizer", "ema")
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_killed_at_random_moments_continues_to_the_same_bits(tmp_path: Path, precision: str) -> None:
    settings = {"precision": precision, "ema": 0.9, "accumulate": 2}
    train(tmp_path / "whole", STEPS, **settings)  # type: ignore[arg-type]
    killed = tmp_path / "killed"
    slow = command(killed, {**settings, "slow": 0.01, "checkpoint_every": 2, "rest_at": REST_AT})
    for rows in sorted(random.sample(range(1, 30), 2)):
        life = subprocess.Popen([*slow, "--resume"] if killed.exists() else slow, env=environment())
        wait_for_rows(killed, rows)
        time.sleep(random.uniform(0, 0.04))  # anywhere in a step, or while a checkpoint is written
        life.kill()
        assert life.wait() == -signal.SIGKILL
    train(killed, STEPS, resume=True, **settings)  # type: ignore[arg-type]
    assert losses(killed) == losses(tmp_path / "whole")
    assert last_weights(killed) == last_weights(tmp_path / "whole")


def test_two_processes_equal_one_that_accumulates_and_resume_as_two_or_as_one(tmp_path: Path) -> None:
    settings = {"ema": 0.9, "clip": 0.5}
    train(tmp_path / "one", STEPS, accumulate=2, **settings)  # type: ignore[arg-type]
    two = tmp_path / "two"
    processes = start_two(command(two, {**settings, "slow": 0.02, "rest_at": REST_AT}))
    wait_for_rows(two, random.randrange(1, 25))
    for process in processes:
        process.kill()
        process.communicate()
    assert len(read_rows(two / "metrics.jsonl")) < STEPS
    shutil.copytree(two, tmp_path / "goes on alone")

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [*torchrun, *command(two, settings, "--resume")[1:]]
    done = subprocess.run(
        arguments, env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    train(tmp_path / "goes on alone", STEPS, accumulate=2, resume=True, **settings)  # type: ignore[arg-type]

    for run in (two, tmp_path / "goes on alone"):
        assert losses(run) == losses(tmp_path / "one")
        assert last_weights(run) == last_weights(tmp_path / "one")


def test_a_signal_lets_the_step_finish_saves_it_and_ends_with_code_130(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = command(run, {"slow": 0.15, "checkpoint_every": 1000, "ema": 0.9})
    process = subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for_rows(run, 3)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 130, said
    step = checkpoint.read_state(checkpoint.latest_good(run)).step
    assert 3 <= step == len(read_rows(run / "metrics.jsonl")) < STEPS
    assert f"after step {step} of {STEPS}" in said and "--resume" in said
    train(tmp_path / "whole", STEPS, ema=0.9)
    train(run, STEPS, resume=True, ema=0.9)
    assert losses(run) == losses(tmp_path / "whole")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_know_what_goes_wrong_in_one_and_stop_together_when_one_is_told(
    parallel: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = {"rollback_after": 2, "keep": 99, "slow": 0.15, "parallel": parallel}
    processes = start_two(command(run, settings, "--bad-steps", "[3, 7, 8]"))
    wait_for_rows(run, 13)  # behind the rollback from step 8 to 5
    processes[1].send_signal(signal.SIGINT)
    said = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [130, 130], said
    assert not any("terminate called" in one for one in said)

    state = checkpoint.read_state(checkpoint.latest_good(run))
    assert all(f"after step {state.step} of {STEPS}" in one for one in said)
    rows = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, state.step + 1))
    assert [row["step"] for row in rows if "probe" in row] == list(range(6, state.step + 1, 6))
    assert [row["step"] for row in read_rows(run / "skipped.jsonl")] == list(range(1, state.step + 1, 3))

    lines = read_rows(run / "nonfinite.jsonl")
    assert [line["step"] for line in lines] == [3, 7, 8]
    assert lines[0]["ids"] == [20, 21, 22, 23]  # micro-batch 1 of step 3, which process 1 had
    assert (lines[0]["places"], lines[0]["module"]) == ([1], "the images")
    assert (run / lines[0]["saved"] / "batch-1.safetensors").exists()
    (rollback,) = state.rollbacks
    assert (rollback.from_step, rollback.to_step, rollback.bad_steps) == (8, 5, (7, 8))


def test_a_run_killed_before_its_first_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss"')
    train(tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_damaged_newest_checkpoint_costs_steps_but_no_bits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "whole", keep=3)
    run = tmp_path / "damaged"
    shutil.copytree(tmp_path / "whole", run)
    for step in (16, 15):
        path = run / "checkpoints" / f"step-{step}" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:100])
    train(run, resume=True)
    assert "Falling back" in caplog.text
    assert losses(run) == losses(tmp_path / "whole")
    assert checkpoint.check(run / "checkpoints" / "step-16").step == 16


def test_a_disk_that_fills_up_ends_the_run_in_a_sentence_and_with_room_it_goes_on(
    small_disk: Path, tmp_path: Path
) -> None:
    train(tmp_path / "whole", STEPS)
    with pytest.raises(UserError, match=r"the disk is full|No space left on device"):
        train(small_disk, STEPS, checkpoint_every=1, keep=99)
    assert not list((small_disk / "checkpoints").glob(".writing*"))
    assert checkpoint.step_of(checkpoint.latest_good(small_disk)) > 5
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    train(small_disk, STEPS, resume=True)
    assert losses(small_disk) == losses(tmp_path / "whole")


def test_step_zero_is_saved_at_the_start(tmp_path: Path) -> None:
    train(tmp_path)
    state = checkpoint.check(tmp_path / "checkpoints" / "step-0")
    assert (state.step, state.seed, state.threads, state.micro_batch, state.world) == (0, 0, 1, 4, 1)
    assert (state.data, state.extra) == ("toy", {"mean": [0.5]})


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(UserError, match="already holds a run"):
        train(tmp_path)


def test_resuming_a_finished_run_adds_nothing(tmp_path: Path) -> None:
    train(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert train(tmp_path, resume=True).state.step == 16
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_changed_data_batch_or_seed_refuse_to_resume(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(UserError, match=r"The data of .* have changed"):
        train(tmp_path, resume=True, about=About(data="other"))
    with pytest.raises(UserError, match=r"train.batch_size=4 and cannot go on with 8"):
        train(tmp_path, resume=True, accumulate=2)
    with pytest.raises(UserError, match=r"train.seed=0 and cannot go on with 1"):
        train(tmp_path, resume=True, seed=1)


def test_other_circumstances_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, accumulate=2)
    train(tmp_path, resume=True, micro=8)
    assert "micro_batch 4 -> 8" in caplog.text and "not to the last bit" in caplog.text


def test_losses_are_not_promised_where_other_micro_batches_draw_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    about = About(drawn="drop path and Mixup")
    train(tmp_path, accumulate=2, about=about)
    train(tmp_path, resume=True, micro=8, about=about)
    assert "losses agree" not in caplog.text
    assert "(micro_batch 4 -> 8" in caplog.text and "have drop path and Mixup of their own" in caplog.text
