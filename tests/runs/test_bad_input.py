"""What a person does wrong, and the one sentence that answers it."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import SMALL, answer


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["pretrain", "mae_bsae"], 2, "mae_base"),
        (["pretrian"], 2, "pretrain"),
        (["pretrain", "mae_tiny", "data.pth=x"], 2, "data.path"),
        (["pretrain", "mae_tiny", "train.epochs=many"], 2, "train.epochs"),
        (["pretrain", "mae_tiny"], 2, "data.path="),
        (["pretrain", "missing/"], 2, "missing"),
        (["pretrain", "mae_tiny", "data.path=missing"], 2, "missing"),
        (["pretrain", "mae_tiny", "encoder.name=vit_bse", "data.path={few}"], 2, "vit_base"),
        (["pretrain", "mae_tiny", "data.size=60"], 2, "56"),
        (["pretrain", "mae_tiny", "data.path={few}", "train.batch_size=4096"], 2, "train.batch_size=48"),
        (["pretrain", "mae_tiny", "data.path={few}", "train.device=cuda"], 2, "train.device=cuda"),
        (["pretrain", "mae_tiny", "data.path={few}", "method.mask.ratio=0.99", *SMALL], 2, "mask ratio"),
        (["pretrain", "mae_tiny", "data.path={few}", "data.channels=5", *SMALL], 3, "5"),
        (["pretrain", "mae_tiny", "data.path={empty}"], (2, 3), "empty"),
        (["pretrain", "mae_tiny", "data.path={few}", "encoder.init=nowhere.pth", *SMALL], 2, "nowhere.pth"),
        (
            ["pretrain", "mae_tiny", "data.path={few}", *SMALL, "train.micro_batch=5"],
            2,
            "train.micro_batch=4",
        ),
        (["pretrain", "{few}", "--resume"], 2, "resume"),
        (["pretrain", "runs/nowhere", "--resume"], 2, "no run folder"),
        (["finetune", "runs/nowhere", "--resume"], 2, "no run folder"),
        (["reconstruct", "runs/nowhere", "--ratios", "nan"], 2, "--ratios"),
        (["pretrain", "mae_tiny", "data.path={few}", "--launch", "slrum"], 2, "Did you mean 'slurm'"),
        (["pretrain", "mae_tiny", "data.path={few}", "--launch", "local", "node=2"], 2, "'nodes'"),
        (["finetune", "runs/nowhere", "--resume", "--launch", "local"], 2, "no run folder"),
        (["reconstruct", "nowhere"], 2, "nowhere"),
        (["probe", "random:vit_tiny"], 2, "data.path="),
        (["probe", "random:vit_tiny", "data.path={few}"], (2, 3), "class"),
        (["report", "{few}"], 2, "run"),
        (["recipes", "show", "mae_bsae"], 2, "mae_base"),
        (["data", "check", "nowhere"], 2, "nowhere"),
        (["data", "prepare", "nowhere", "out", "--short-side", "64"], 2, "nowhere"),
    ],
)
def test_a_mistake_gets_one_sentence(
    words: list[str],
    code: int | tuple[int, ...],
    says: str,
    few: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given, error = answer(capsys, *(word.format(few=few, empty=tmp_path / "empty") for word in words))
    assert given in (code if isinstance(code, tuple) else (code,)), error
    assert says in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("late", ["encoder.init={few}", "log.writers=[wandb]", "train.batch_size=4096"])
def test_a_failed_start_leaves_nothing_that_was_not_there(
    late: str, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    words = ["pretrain", "mae_tiny", f"data.path={few}", *SMALL, late.format(few=few)]
    assert answer(capsys, *words)[0] in (2, 3)
    assert answer(capsys, *words, "train.run=new/run")[0] in (2, 3)
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    assert answer(capsys, *words, "train.run=mine")[0] in (2, 3)
    assert answer(capsys, *words, "train.run=mine/run")[0] in (2, 3)
    assert not (tmp_path / "mine" / "run").exists() and (tmp_path / "mine").is_dir()


def test_a_run_folder_is_never_overwritten(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "pretrain",
        "mae_tiny",
        f"data.path={few}",
        f"train.run={tmp_path / 'run'}",
        *SMALL,
        "train.epochs=1",
    ]
    assert answer(capsys, *words)[0] == 0
    code, error = answer(capsys, *words)
    assert code == 2 and "--resume" in error
    code, error = answer(capsys, "pretrain", str(tmp_path / "run"))
    assert code == 2 and "--resume" in error


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"PK\x03\x04 not really", "cannot"),
        (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "nothing"),
    ],
)
def test_a_foreign_checkpoint_is_refused_and_never_executed(
    content: bytes, says: str, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    words = ["pretrain", "mae_tiny", f"data.path={few}", f"encoder.init={tmp_path / 'weights.pth'}", *SMALL]
    code, error = answer(capsys, *words, f"train.run={tmp_path / 'run'}")
    assert code in (2, 3) and "weights.pth" in error


def test_channels_that_do_not_match_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "stack.npy", np.zeros((32, 32, 32, 5), np.uint8))
    words = ["pretrain", "mae_tiny", f"data.path={tmp_path / 'stack.npy'}", "data.channels=3", *SMALL]
    code, error = answer(capsys, *words, f"train.run={tmp_path / 'run'}")
    assert code == 3 and "5" in error and "3" in error
