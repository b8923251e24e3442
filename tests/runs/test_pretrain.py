"""A person's way: images in, a run folder out, pictures, a probe, a report."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import SMALL, losses, rows

import mimkit
from mimkit.errors import DataError, UserError


@pytest.fixture(scope="module")
def run(photographs: Path, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe on real photographs, with workers, pictures and a probe on the way."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    settings = [
        f"data.path={photographs}",
        f"train.run={folder}",
        f"log.probe={{path: {faces}, every_epochs: 2, folds: 2, size: 32}}",
        *SMALL,
        "train.batch_size=64",
        "train.epochs=4",
        "schedule.warmup_epochs=1",
        "data.workers=1",
        "log.samples_every=2",
        "log.writers=[tensorboard]",
        "train.checkpoint_every=20",
        "train.ema=0.9",
    ]
    outcome = mimkit.pretrain("mae_tiny", settings)
    assert outcome.run == folder
    return folder


def test_the_loss_falls_below_what_a_mean_would_reach(run: Path) -> None:
    made = rows(run)
    assert [row["step"] for row in made] == list(range(1, len(made) + 1))
    first, last = np.mean(losses(run)[:5]), np.mean(losses(run)[-5:])
    assert last < 0.75 * first
    assert made[-1]["trivial/model"] < made[-1]["trivial/zero"]


def test_every_step_has_a_row_with_loss_rate_and_speed(run: Path) -> None:
    for row in rows(run):
        assert {"step", "epoch", "loss", "lr", "images_per_second", "grad_norm"} <= row.keys()
        assert row["images_per_second"] > 0


def test_probe_and_quality_join_the_metrics_of_their_step(run: Path) -> None:
    last = rows(run)[-1]
    assert 0.5 <= last["probe/knn_mean_layer12"] <= 1
    assert last["quality/effective_rank"] > 1


def test_the_run_folder_holds_what_a_stranger_needs(run: Path) -> None:
    assert (run / "log.txt").read_text().count(
        "lr 5.0e-4 = 2.0e-3 x (batch 64 x accumulate 1 x processes 1 = 64) / 256"
    ) == 1
    assert list((run / "tensorboard").iterdir())
    pictures = sorted((run / "samples").glob("*.png"))
    assert pictures and Image.open(pictures[-1]).width > 300
    steps = sorted(int(path.name[5:]) for path in (run / "checkpoints").iterdir())
    assert steps[0] == 0 and steps[-1] == len(rows(run))
    state = json.loads((run / "checkpoints" / f"step-{steps[-1]}" / "state.json").read_text())
    assert state["extra"]["target"] == "pixels normalised per patch"
    assert len(state["extra"]["mean"]) == 3


def test_reconstructions_probe_and_report_work_on_the_run(
    run: Path, faces: Path, few: Path, tmp_path: Path
) -> None:
    grid = mimkit.reconstruct(run, few, tmp_path / "grid.png", ratios=(0.5, 0.9), images=3)
    single = mimkit.reconstruct(run, None, tmp_path / "one.png", ratios=(0.75,), images=2)
    assert Image.open(grid).width > 300 and Image.open(single).width > 300
    table = mimkit.probe(run, [f"data.path={faces}", "data.size=32"], tmp_path / "probe.json")
    assert table.best.accuracy > 0.6
    assert json.loads((tmp_path / "probe.json").read_text())["best"]["accuracy"] == table.best.accuracy
    page = mimkit.report(run, tmp_path / "report.html")
    assert page.stat().st_size > 10_000 and page.with_suffix(".png").exists()


def test_a_new_run_can_start_from_an_earlier_one(run: Path, few: Path, tmp_path: Path) -> None:
    settings = [
        *SMALL,
        f"data.path={few}",
        f"encoder.init={run}",
        "train.epochs=1",
        "optimiser.layer_decay=0.75",
    ]
    mimkit.pretrain("mae_tiny", [*settings, f"train.run={tmp_path / 'again'}"])
    fresh = [*SMALL, f"data.path={few}", "train.epochs=1", f"train.run={tmp_path / 'fresh'}"]
    mimkit.pretrain("mae_tiny", fresh)
    assert losses(tmp_path / "again")[0] < losses(tmp_path / "fresh")[0]


def test_images_alone_are_enough(few: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="mimkit")
    mimkit.pretrain(
        few, [*SMALL, "train.epochs=1", "schedule.warmup_epochs=0", f"train.run={tmp_path / 'run'}"]
    )
    assert "48 images" in caplog.text and "Recipe for these images: mae_tiny" in caplog.text


@pytest.mark.parametrize(("channels", "kind"), [(1, np.uint8), (5, np.uint16), (3, np.float32)])
def test_other_channels_and_depths_train_too(channels: int, kind: type, tmp_path: Path) -> None:
    shape = (24, 40, 48, channels)
    stack = np.random.default_rng(0).random(shape)
    stack = (
        stack * np.linspace(0.2, 1, 48)[:, None] * (1 if kind is np.float32 else np.iinfo(kind).max)
    ).astype(kind)
    np.save(tmp_path / "stack.npy", stack)
    run = tmp_path / "run"
    mimkit.pretrain(
        "mae_tiny",
        [
            *SMALL,
            f"data.path={tmp_path / 'stack.npy'}",
            "data.size=[32, 48]",
            "train.epochs=2",
            f"train.run={run}",
        ],
    )
    assert np.isfinite(losses(run)).all()
    mimkit.reconstruct(run, None, tmp_path / "picture.png", images=2)


def test_damaged_images_are_replaced_and_listed(few: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in few.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    broken = folder / "broken.jpg"
    broken.write_bytes((folder / "000.jpg").read_bytes()[:500])
    run = tmp_path / "run"
    mimkit.pretrain("mae_tiny", [*SMALL, f"data.path={folder}", "train.epochs=2", f"train.run={run}"])
    skipped = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert {row["name"] for row in skipped} == {"broken.jpg"}
    assert all(row["reason"] for row in skipped)


def test_too_many_damaged_images_stop_the_run(few: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, path in enumerate(sorted(few.iterdir())):
        data = path.read_bytes()
        (folder / path.name).write_bytes(data if number % 2 else data[:400])
    with pytest.raises(DataError, match="bad_share"):
        mimkit.pretrain(
            "mae_tiny", [*SMALL, f"data.path={folder}", "train.epochs=30", f"train.run={tmp_path / 'run'}"]
        )


def test_a_decoder_that_was_never_trained_is_not_drawn(few: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    mimkit.pretrain("mae_tiny", [*SMALL, f"data.path={few}", "train.epochs=1", f"train.run={run}"])
    for step in (run / "checkpoints").iterdir():
        if step.name != "step-0":
            step.rename(tmp_path / step.name)
    with pytest.raises(UserError, match="_full"):
        mimkit.reconstruct(run, few, tmp_path / "picture.png")


def test_a_run_without_one_finite_step_ends_with_a_loss_that_says_so(few: Path, tmp_path: Path) -> None:
    settings = [*SMALL, f"data.path={few}", "train.epochs=1", f"train.run={tmp_path / 'run'}"]
    outcome = mimkit.pretrain(
        "mae_tiny", [*settings, "data.mean=[0, 0, 0]", "data.std=[1e-40, 1e-40, 1e-40]"]
    )
    assert np.isnan(outcome.loss) and "loss nan" in outcome.message
    assert len((tmp_path / "run" / "nonfinite.jsonl").read_text().splitlines()) == outcome.steps


def test_two_runs_that_start_in_the_same_second_have_folders_of_their_own(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mimkit.verbs.training.time.strftime", lambda _: "20260101-120000")
    settings = [*SMALL, f"data.path={few}", "train.epochs=1"]
    found = [mimkit.pretrain("mae_tiny", settings).run.name for _ in range(2)]
    assert found == ["mae_tiny-20260101-120000", "mae_tiny-20260101-120000-2"]
