"""The run folder: claims on it, and its files of JSON lines."""

import logging
from pathlib import Path

import pytest
from torch import nn

from mimkit.engine import checkpoint
from mimkit.engine.checkpoint import State
from mimkit.engine.run_folder import FILE_ONLY, JsonLines, claim, log_file, missing, occupied, read_rows
from mimkit.errors import UserError


def test_a_torn_last_line_and_rows_behind_the_step_are_cut(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        lines.append({"step": step, "loss": step / 3})
    lines.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.cut(3)
    lines.append({"step": 4, "loss": 1.0})
    lines.close()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_line_that_lacks_only_its_end_counts_as_torn(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"step": 2}')
    assert read_rows(tmp_path / "m.jsonl") == [{"step": 1}]
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.cut(9)
    lines.append({"step": 2})
    lines.close()
    assert read_rows(tmp_path / "m.jsonl") == [{"step": 1}, {"step": 2}]


def test_losses_are_written_in_full_precision_and_what_is_not_finite_as_null(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.append({"step": 1, "loss": 0.1 + 0.2, "grad_norm": float("nan")})
    lines.close()
    assert read_rows(tmp_path / "m.jsonl") == [{"step": 1, "loss": 0.1 + 0.2, "grad_norm": None}]


def test_a_folder_with_a_run_is_not_claimed_for_another(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, State(), nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"already holds a run; continue it with .* --resume"):
        claim(tmp_path, resume=False)
    assert claim(tmp_path, resume=True) == tmp_path


def test_an_empty_folder_cannot_be_resumed_but_one_with_a_recipe_can(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run that could be resumed"):
        claim(tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()
    assert claim(tmp_path / "new", resume=False).is_dir()
    (tmp_path / "new" / "recipe.yaml").write_text("name: killed before its first checkpoint\n")
    assert claim(tmp_path / "new", resume=True).is_dir()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be made \(Not a directory\); choose another"):
        claim(tmp_path / "file" / "run", resume=False)


def test_what_mimkit_logs_goes_to_the_log_file_while_it_is_open(tmp_path: Path) -> None:
    logger = logging.getLogger("mimkit.anything")
    level = logging.getLogger("mimkit").level
    shown: list[logging.LogRecord] = []
    terminal = logging.Handler()
    terminal.emit = shown.append  # type: ignore[method-assign]
    logging.getLogger("mimkit").addHandler(terminal)
    with log_file(tmp_path), log_file(tmp_path):
        logger.info("inside")
        FILE_ONLY.info("for the file")
    logger.warning("outside")
    logging.getLogger("mimkit").removeHandler(terminal)
    FILE_ONLY.info("for nobody")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.partition("INFO ")[2] for line in lines] == ["inside", "for the file"]
    assert [record.message for record in shown] == ["inside", "outside"]
    assert logging.getLogger("mimkit").level == level


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_while_writing_rows_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    lines = JsonLines(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="No space left on device; the checkpoints are untouched"):
        lines.append({"step": 1})
    lines.close()


def fail_in(run: Path, made: list[Path], *files: str) -> None:
    with pytest.raises(KeyboardInterrupt), occupied(run, False, made):
        for name in files:
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).touch()
        raise KeyboardInterrupt


def test_a_start_that_fails_takes_the_folders_away_that_it_made(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "night" / "first"
    made = missing(run)
    assert made == [run, run.parent, run.parent.parent]
    fail_in(run, made, "recipe.yaml", "tensorboard/events", "checkpoints/.writing-step-0")
    assert not list(tmp_path.iterdir())
    fail_in(run, made, "recipe.yaml", "somebody else's")
    assert [path.name for path in run.iterdir()] == ["somebody else's"]


def test_a_start_that_fails_leaves_a_folder_that_was_there(tmp_path: Path) -> None:
    fail_in(tmp_path, missing(tmp_path), "recipe.yaml")
    assert (tmp_path / "recipe.yaml").exists()


def test_a_run_with_a_checkpoint_stays_when_it_fails(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt), occupied(run, False, missing(run)):
        checkpoint.save(run, State(), nn.Linear(2, 2))
        raise KeyboardInterrupt
    assert (run / "checkpoints" / "step-0").is_dir()
