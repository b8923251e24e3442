"""Stopped and gone on with: every later loss is bit-identical to the run that nobody stopped."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from small_runs import answer, arguments, losses, mimkit, rows, start, wait_for_rows

from mimkit.cli import main

EPOCHS = "train.epochs=6"  # 18 steps of 16 of the 48 images


@pytest.mark.parametrize(
    ("precision", "workers", "processes"),
    [("fp32", 0, 1), ("bf16", 2, 1), ("fp32", 1, 2)],
)
def test_a_killed_run_continues_to_the_same_bits(
    precision: str, workers: int, processes: int, few: Path, tmp_path: Path
) -> None:
    settings = (
        EPOCHS,
        f"train.precision={precision}",
        f"data.workers={workers}",
        f"train.micro_batch={16 // processes}",
        "encoder.drop_path=0.1",
        "train.ema=0.9",
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*arguments(few, whole, *settings)]) == 0  # one process, whose micro-batches are the same
    process = start(*arguments(few, killed, *settings), processes=processes)
    wait_for_rows(killed, 8, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = ("pretrain", str(killed), "--resume")
    if processes == 1:
        assert main([*again]) == 0
    else:
        resumed = mimkit(*again, processes=processes)
        assert resumed.returncode == 0, resumed.stderr
    assert losses(killed) == losses(whole)
    assert [row["step"] for row in rows(killed)] == list(range(1, 19))
    last = "checkpoints/step-18/model.safetensors"
    assert (killed / last).read_bytes() == (whole / last).read_bytes()


def test_two_processes_equal_one_with_the_same_micro_batches(few: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    settings = (
        "train.epochs=3",
        "train.micro_batch=8",
        "encoder.drop_path=0.2",
    )  # drawn by the place in the step
    assert main([*arguments(few, one, *settings)]) == 0
    done = mimkit(*arguments(few, two, *settings), processes=2)
    assert done.returncode == 0, done.stderr
    assert losses(one) == losses(two)


def test_a_run_of_two_processes_goes_on_with_one(few: Path, tmp_path: Path) -> None:
    settings = ("train.epochs=3", "train.micro_batch=8")
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*arguments(few, one, *settings)]) == 0
    process = start(*arguments(few, two, *settings), processes=2)
    wait_for_rows(two, 6, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert main(["pretrain", str(two), "--resume"]) == 0
    assert losses(one) == losses(two)


def test_a_run_of_one_process_goes_on_with_two_in_smaller_micro_batches(few: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*arguments(few, run, "train.epochs=1")]) == 0
    done = mimkit("pretrain", str(run), "--resume", "train.epochs=2", processes=2)
    assert done.returncode == 0, done.stderr
    assert "train.micro_batch=16 is more than 2 processes can share; it is cut down to 8" in done.stderr
    assert [row["step"] for row in rows(run)] == list(range(1, 7))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_stopped_run_saves_its_step_and_leaves_with_130(
    number: signal.Signals, few: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(*arguments(few, run, "train.epochs=100", "data.workers=1", "train.checkpoint_every=1000"))
    wait_for_rows(run, 3, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 130, output
    assert "--resume" in output and "Traceback" not in output
    last = len(rows(run))
    assert (run / "checkpoints" / f"step-{last}").is_dir()


def test_a_truncated_checkpoint_is_passed_over(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert main([*arguments(few, whole, "train.epochs=5")]) == 0
    shutil.copytree(whole, run)
    newest = run / "checkpoints" / "step-15"
    with (newest / "optimizer.safetensors").open("r+b") as file:
        file.truncate(1000)
    code, error = answer(capsys, "pretrain", str(run), "--resume")
    assert code == 0 and "step-15 is damaged" in error
    assert losses(run) == losses(whole)


def test_a_changed_recipe_is_shown_and_refused(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*arguments(few, run, "train.epochs=1")]) == 0
    code, error = answer(capsys, "pretrain", str(run), "--resume", "optimiser.base_lr=0.1", "train.keep=5")
    assert code == 2
    assert "optimiser.base_lr: 0.002 -> 0.1" in error and "train.keep:" not in error


def test_a_data_set_that_has_changed_is_named_before_the_batch_that_no_longer_fits(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(few, images)
    assert answer(capsys, *arguments(images, run, "train.epochs=1"))[0] == 0
    (images / "047.jpg").rename(images / "other.jpg")
    code, error = answer(capsys, "pretrain", str(run), "--resume")
    assert code == 2 and f"(48 images in {images}: other files, names or labels than then, index" in error
    for number in range(40):
        (images / f"{number:03}.jpg").unlink()
    code, error = answer(capsys, "pretrain", str(run), "--resume")
    assert code == 2 and "batch" not in error
    assert f"(then 48 images in {images}, now 8 images in {images})" in error
    assert (
        f"restore the data, or start a new run that continues from its weights (encoder.init={run})" in error
    )


def test_changed_images_are_refused(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(few, images)
    process = start(*arguments(images, run, "train.epochs=50"))
    wait_for_rows(run, 6, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (images / "047.jpg").rename(images / "other.jpg")
    kept = (run / "recipe.yaml").read_bytes()
    for words in ((), (f"data.path={few.parent}",)):
        code, error = answer(capsys, "pretrain", str(run), "--resume", *words)
        assert code in (2, 3) and "data" in error
        assert (run / "recipe.yaml").read_bytes() == kept  # else no later attempt could go on


def test_a_run_that_is_being_trained_is_left_alone(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    process = start(*arguments(few, run, "train.epochs=400", "data.workers=1"))
    wait_for_rows(run, 2, process)
    sentence = f"{run} is being trained by process {process.pid}; wait until"
    code, error = answer(capsys, "pretrain", str(run), "--resume")
    assert code == 2 and sentence in error
    second = mimkit("pretrain", str(run), "--resume", processes=2)  # neither waits for the other
    assert second.returncode != 0 and sentence in second.stderr and "fault in mimkit" not in second.stderr
    assert process.poll() is None
    process.kill()  # its loader's workers outlive it for some seconds
    process.wait()
    code, error = answer(capsys, "pretrain", str(run), "--resume", "train.epochs=3")
    assert code == 0, error
