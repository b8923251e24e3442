"""Fine-tuning as a user does it: a real set, well above chance; stopped and gone on with; every mistake answered."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import answer, losses, mimkit, rows, start, wait_for_rows

import mimkit as library
from mimkit.cli import main

SMALL = (  # a step in some milliseconds
    "encoder.name=vit:48x3x3",
    "data.size=32",
    "train.precision=fp32",
    "train.checkpoint_every=20",
    "log.samples_every=1000",
    "log.evaluate_every=10",
    "log.writers=[]",
    "data.workers=0",
)
ALL = (  # everything that draws random numbers while it trains
    "task.mixup=0.8",
    "task.cutmix=1",
    "task.randaugment=rand-m9-mstd0.5-inc1",
    "task.erasing=0.25",
    "encoder.drop_path=0.1",
    "train.ema=0.9",
)


def arguments(data: Path, run: Path, *more: str, recipe: str = "finetune_vit_tiny") -> tuple[str, ...]:
    return ("finetune", recipe, f"data.path={data}", f"train.run={run}", *SMALL, *more)


def test_the_tiny_encoder_learns_to_tell_faces(faces: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = library.finetune(
        "finetune_vit_tiny",
        [f"data.path={faces}", f"train.run={run}", "data.size=32", "train.epochs=6", "data.workers=0"],
    )
    assert "top-1" in outcome.message and f"mimkit evaluate {run}" in outcome.message
    accuracies = [row["val/top1"] for row in rows(run) if "val/top1" in row]
    assert len(accuracies) == 6 and accuracies[-1] >= 0.8  # 40 images: chance reaches 0.8 once in 10^4
    assert library.evaluate(run).numbers["top1"] == accuracies[-1]
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step-0000030.png"]


@pytest.mark.parametrize(("workers", "processes"), [(1, 1), pytest.param(0, 2, marks=pytest.mark.slow)])
def test_a_killed_run_continues_to_the_same_bits(
    workers: int, processes: int, faces: Path, tmp_path: Path
) -> None:
    settings = (*ALL, "train.epochs=16", f"data.workers={workers}")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    if processes == 1:
        assert main([*arguments(faces, whole, *settings)]) == 0
    else:
        done = mimkit(*arguments(faces, whole, *settings), processes=processes)
        assert done.returncode == 0, done.stderr
    process = start(*arguments(faces, killed, *settings), processes=processes)
    wait_for_rows(killed, 30, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(rows(killed)) < 80
    resumed = mimkit("finetune", str(killed), "--resume", processes=processes)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(killed) == losses(whole)
    assert [row.get("val/top1") for row in rows(killed)] == [row.get("val/top1") for row in rows(whole)]
    for name in ("model", "ema"):
        last = f"checkpoints/step-80/{name}.safetensors"
        assert (killed / last).read_bytes() == (whole / last).read_bytes()


@pytest.mark.slow  # pre-training holds the same engine to it in every run of the tests
def test_two_processes_equal_one_with_the_same_micro_batches(faces: Path, tmp_path: Path) -> None:
    settings = ("train.epochs=2", "train.micro_batch=16", "task.balance=true")
    one, two = tmp_path / "one", tmp_path / "two"
    assert mimkit(*arguments(faces, one, *settings)).returncode == 0
    done = mimkit(*arguments(faces, two, *settings), processes=2)
    assert done.returncode == 0, done.stderr
    assert losses(one) == losses(two)
    alone, shared = rows(one)[-1], rows(two)[-1]  # the held-out images are shared out too
    assert alone["val/top1"] == shared["val/top1"] and alone["val/loss"] == pytest.approx(shared["val/loss"])


def test_a_linear_probe_trains_a_layer_alone_and_resumes(faces: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    settings = ("encoder.patch=8", "train.batch_size=32", "optimiser.base_lr=4", "train.epochs=12")
    words = [*settings, "schedule.warmup_epochs=1", "train.micro_batch=16"]
    assert main([*arguments(faces, whole, *words, recipe="linear_probe_vit_base")]) == 0
    first, last = (library.load(whole / f"checkpoints/step-{step}") for step in (0, 60))
    assert first.task is not None and last.task is not None
    before, after = first.task.state_dict(), last.task.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        *("head.0.running_mean", "head.0.running_var", "head.0.num_batches_tracked"),
        *("head.1.weight", "head.1.bias"),
    }
    assert int(after["head.0.num_batches_tracked"]) == 120  # micro-batches
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step-60")
    assert mimkit("finetune", str(run), "--resume").returncode == 0
    assert losses(run) == losses(whole)
    model = "checkpoints/step-60/model.safetensors"
    assert (run / model).read_bytes() == (whole / model).read_bytes()
    assert rows(whole)[-1]["val/top1"] > 0.7


def test_a_backbone_of_timm_is_fine_tuned_as_a_whole_and_in_part(faces: Path, tmp_path: Path) -> None:
    words = (
        "encoder.name=timm:resnet10t",
        "encoder.patch=1",
        "encoder.drop_path=0.1",
        "optimiser.layer_decay=0.7",
    )
    for run, more in ((tmp_path / "whole", ()), (tmp_path / "part", ("task.blocks=1",))):
        outcome = library.finetune(
            "finetune_vit_tiny", list(arguments(faces, run, *words, *more, "train.epochs=1")[2:])
        )
        first, last = (library.load(run / f"checkpoints/step-{step}") for step in (0, outcome.steps))
        assert first.task is not None and last.task is not None
        before, after = first.task.state_dict(), last.task.state_dict()
        changed = {
            name.split(".")[2]
            for name in before
            if not torch.equal(before[name], after[name]) and "model" in name
        }
        assert changed == ({"layer4"} if more else {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"})
        assert library.evaluate(run).numbers["images"] == 40


def test_a_stopped_run_names_the_verb_that_goes_on(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    process = start(*arguments(faces, run, "train.epochs=4000"))
    wait_for_rows(run, 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 130, output
    assert f"mimkit finetune {run} --resume" in output and "Traceback" not in output
    code, error = answer(capsys, *arguments(faces, run))
    assert code == 2 and f"mimkit finetune {run} --resume" in error


def test_features_are_the_same_from_two_processes(faces: Path, tmp_path: Path) -> None:
    words = ["embed", "random:vit_tiny", str(faces), "data.size=32", "encoder.patch=16", "--out"]
    assert main([*words, str(tmp_path / "1.npy")]) == 0
    done = mimkit(*words, str(tmp_path / "2.npy"), processes=2)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "1.npy"), np.load(tmp_path / "2.npy"))
    names = [(tmp_path / f"{processes}.npy.files.txt").read_text() for processes in (1, 2)]
    assert names[0] == names[1]


def test_a_changed_class_is_noticed_on_resuming(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(faces, images)
    assert main([*arguments(images, run, "train.epochs=1")]) == 0
    (images / "other").rename(images / "others")
    code, error = answer(capsys, "finetune", str(run), "--resume", "train.epochs=2")
    assert code in (2, 3) and "data" in error


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["finetune", "mae_tiny", "data.path={faces}"], 2, "mimkit pretrain"),
        (["pretrain", "finetune_vit_tiny", "data.path={faces}"], 2, "mimkit finetune"),
        (["finetune", "finetune_vit_tny", "data.path={faces}"], 2, "finetune_vit_tiny"),
        (["finetune", "finetune_vit_tiny"], 2, "data.path="),
        (["finetune", "finetune_vit_tiny", "data.path={faces}/face"], 2, "class folders"),
        (["finetune", "finetune_vit_tiny", "data.path={faces}", "data.val=nowhere"], 2, "nowhere"),
        (
            ["finetune", "finetune_vit_tiny", "data.path={faces}", "encoder.init=nowhere.pth"],
            2,
            "nowhere.pth",
        ),
        (["finetune", "finetune_vit_tiny", "data.path={faces}", "task.blocks=13", "data.size=32"], 2, "12"),
        (["finetune", "finetune_vit_tiny", "data.path={faces}", "task.randaugment=auto"], 2, "rand-m9"),
        (["finetune", "finetune_vit_tiny", "data.path={faces}", "task.pooling=max"], 2, "'mean' or 'cls'"),
        (["finetune", "finetune_vit_base", "data.path={faces}", *SMALL], 2, "train.batch_size=160"),
        (
            ["finetune", "finetune_vit_base", "data.path={faces}", *SMALL, "train.batch_size=15"],
            2,
            "train.batch_size=14",
        ),
        (
            ["finetune", "finetune_vit_tiny", "data.path={faces}", "task.blocks=1", "task.head=probe"],
            2,
            "task.blocks",
        ),
        (["finetune", "{faces}", "--resume"], 2, "no run folder"),
        (["evaluate", "nowhere"], 2, "nowhere"),
        (["evaluate", "random:vit_tiny", "data.path={faces}"], 2, "mimkit finetune"),
        (["predict", "random:vit_tiny", "{faces}"], 2, "mimkit finetune"),
        (["embed", "nowhere", "{faces}", "--out", "f.npy"], 2, "nowhere"),
        (["embed", "random:vit_tiny", "{faces}", "--out", "f.txt"], 2, ".npy"),
        (["embed", "random:vit_tny", "{faces}", "--out", "f.npy"], 2, "vit_tiny"),
        (["compare", "--inits", "random", "data.path={faces}"], 2, "random:vit_tiny"),
        (["compare", "--inits", "nowhere", "data.path={faces}"], 2, "nowhere"),
    ],
)
def test_a_mistake_gets_one_sentence(
    words: list[str],
    code: int,
    says: str,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given, error = answer(capsys, *(word.format(faces=faces) for word in words))
    assert given == code, error
    assert says in error
    assert not list(tmp_path.rglob("step-*"))


def test_a_batch_that_processes_do_not_divide_is_named_with_one_that_they_do(
    faces: Path, tmp_path: Path
) -> None:
    done = mimkit(*arguments(faces, tmp_path / "run", "train.batch_size=15"), processes=2)
    assert done.returncode != 0
    assert "train.batch_size=15 does not divide over 2 processes; use train.batch_size=14" in done.stderr
