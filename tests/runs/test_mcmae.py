"""MCMAE as a person uses it: photographs in, a run, resumed, pictures, a probe, a classifier."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_runs import SMALL, answer, losses, rows

import mimkit

SETTINGS = [word for word in SMALL if not word.startswith("encoder.patch")]


@pytest.fixture(scope="module")
def run(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mcmae"
    settings = [f"data.path={photographs}", f"train.run={folder}", *SETTINGS, "train.batch_size=32"]
    mimkit.pretrain("mcmae_tiny", [*settings, "train.epochs=4", "schedule.warmup_epochs=1"])
    return folder


def test_the_loss_falls_below_what_zeros_would_reach(run: Path) -> None:
    first, last = np.mean(losses(run)[:5]), np.mean(losses(run)[-5:])
    assert last < 0.8 * first
    assert rows(run)[-1]["trivial/model"] < rows(run)[-1]["trivial/zero"]


def test_a_run_goes_on_and_is_looked_at(
    run: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = rows(run)[-1]["step"]
    mimkit.pretrain(run, ["train.epochs=5"], resume=True)
    assert rows(run)[-1]["step"] > step
    mimkit.reconstruct(run, out=tmp_path / "picture.png", ratios=(0.5,))
    assert (tmp_path / "picture.png").stat().st_size > 1000
    where = [str(run), str(faces), "--features", "--beside", "random:vit_tiny", "--images", "2"]
    code, _ = answer(capsys, "reconstruct", *where, "--out", str(tmp_path / "maps.png"))
    assert code == 0 and (tmp_path / "maps.png").stat().st_size > 1000
    code, error = answer(capsys, "reconstruct", str(run), "--beside", "random:vit_tiny")
    assert code == 2 and "add --features" in error
    mimkit.embed(run, faces, tmp_path / "faces.npy")
    assert np.load(tmp_path / "faces.npy").shape[1] == 192


def test_the_encoder_is_fine_tuned_and_probed(run: Path, faces: Path, tmp_path: Path) -> None:
    for recipe in ("finetune_mcmae_tiny", "linear_probe_mcmae_tiny"):
        small = ["train.epochs=1", "schedule.warmup_epochs=0", "data.size=32", "data.workers=0"]
        where = [f"encoder.init={run}", f"data.path={faces}", f"train.run={tmp_path / recipe}"]
        mimkit.finetune(recipe, [*where, *small, "log.writers=[]"])
        assert (tmp_path / recipe / "metrics.jsonl").exists()


def test_the_run_is_compared_with_random_weights(
    run: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [str(run), f"data.path={faces}", "--out", str(tmp_path / "out"), "--seeds", "1", "--shares", "1"]
    short = ["data.workers=0", "train.epochs=1", "schedule.warmup_epochs=0"]
    code, error = answer(capsys, "compare", "--inits", "random", *where, *short)
    assert code == 0 and "recipe finetune_mcmae_tiny for all of them" in error
    table = json.loads((tmp_path / "out" / "compare.json").read_text())["table"]
    assert {row["use"] for row in table} == {"knn", "linear", "finetune"} and len(table) == 6


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["encoder.kernel=4"], "encoder.kernel: a kernel of 4 has no middle to lie on a position"),
        (["encoder.patch=8"], "encoder.name=mcmae_tiny knows no such field"),
        (["data.size=32", "method.mask.ratio=0.9"], "leaves nothing visible of 4 cells"),
        (["data.size=16"], "leaves nothing visible of 1 cell;"),
        (["method.name=mae", "encoder.masking=tokens"], "made for method.name=mcmae"),
        (["encoder.name=vit_tiny"], "mcmae fuses features of several strides, and vit_tiny has one"),
        (["data.size=48", "method.mask.complementary=true"], "9 cells cannot be shared out evenly"),
        (["encoder.masking=tokens", "method.mask.complementary=true"], "a mask on tokens has no complements"),
    ],
)
def test_bad_input_gets_a_sentence(
    words: list[str], sentence: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = answer(
        capsys, "pretrain", "mcmae_tiny", f"data.path={photographs}", f"train.run={tmp_path / 'run'}", *words
    )
    assert code == 2 and sentence in error


PADDED = (
    "Images of 36 x 24 pixels are padded with zeros to 48 x 32, whole units of 16 x 16 pixels of mcmae_tiny."
)


def test_sizes_that_16_does_not_divide_are_padded_and_that_is_said_once(
    photographs: Path,
    faces: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By the command line and in the run's log, by the Python API, and where a random twin stands beside the model."""
    run = tmp_path / "run"
    small = [*SETTINGS, "data.size=[36,24]", "train.epochs=1", "schedule.warmup_epochs=0"]
    code, error = answer(
        capsys, "pretrain", "mcmae_tiny", f"data.path={photographs}", f"train.run={run}", *small
    )
    assert code == 0 and error.count(PADDED) == 1 == error.count("padded with zeros")
    assert (run / "log.txt").read_text().count(PADDED) == 1
    code, error = answer(capsys, "probe", str(run), f"data.path={faces}")
    assert code == 0 and error.count(PADDED) == 1
    caplog.clear()
    with caplog.at_level("INFO", logger="mimkit"):
        opened = mimkit.load(run)
    assert caplog.text.count(PADDED) == 1
    assert opened.encoder.levels[-1].stride == (16, 16)
