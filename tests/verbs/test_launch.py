"""Handing a run over to SLURM: what is asked of it, and every mistake answered before anything is in the queue."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mimkit
from mimkit.errors import Interrupted, UserError
from mimkit.recipes import load
from mimkit.verbs.launch import _await_ears, _in_the_background, minutes, split


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for SLURM that takes every job; returns the folder of runs."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sbatch", "srun"):
        (tools / name).write_text("#!/bin/sh\necho Submitted batch job 4711\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    import numpy as np
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for number in range(16):
        Image.fromarray(np.full((40, 40, 3), number, np.uint8)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def words(photos: Path, *more: str) -> list[str]:
    return [f"data.path={photos}", "train.batch_size=16", "train.run=run", *more]


def test_a_job_asks_slurm_for_what_it_was_told_and_leaves_a_run_that_can_begin(
    slurm: Path, photos: Path
) -> None:
    options = [
        "nodes=4",
        "gpus=2",
        "time=2-12",
        "partition=long",
        "account=vision",
        "mem=64",
        "train.epochs=9",
    ]
    launched = mimkit.launch("pretrain", "mae_tiny", words(photos, *options))
    assert (launched.id, launched.processes, launched.run) == ("4711", 8, Path("run"))
    assert "scancel 4711" in launched.message and "8 processes" in launched.message
    script, *_ = (slurm / "run" / "jobs").glob("*submission*.sh")
    asked = dict(re.findall(r"#SBATCH --([\w-]+)=(.*)", script.read_text()))
    assert (
        asked
        | {
            "nodes": "4",
            "ntasks-per-node": "2",
            "gpus-per-node": "2",
            "cpus-per-task": "8",
            "time": "3600",
            "mem": "64GB",
            "partition": "long",
            "account": "vision",
            "job-name": "mae_tiny",
            "signal": "USR2@120",
        }
        == asked
    )
    assert "--kill-on-bad-exit=1" in script.read_text()
    recipe = load.resolve("run")
    assert (recipe.train.epochs, recipe.train.run, recipe.train.batch_size) == (9, "run", 16)


def test_a_resumed_run_is_handed_over_too_and_another_start_in_its_folder_is_not(
    slurm: Path, photos: Path
) -> None:
    mimkit.launch("pretrain", "mae_tiny", words(photos))
    assert mimkit.launch("pretrain", "run", ["train.keep=5", "nodes=2"], resume=True).processes == 2
    with pytest.raises(UserError, match="--resume"):
        mimkit.launch("pretrain", "run", [])
    with pytest.raises(UserError, match="no run folder"):
        mimkit.launch("pretrain", "nowhere", [], resume=True)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["node=4"], "no option node=. Did you mean 'nodes'?"),
        (["nodes=four"], "nodes=four given; allowed: a whole number from 1"),
        (["nodes=0"], "nodes=0 given"),
        (["time=24h"], "time=24h given; allowed: minutes"),
        (["gpus=2", "tasks=4"], "tasks=4 a node are more than its gpus=2"),
        (["nodes=3"], "train.batch_size=16 does not divide over 3 processes; use train.batch_size=15"),
        (["train.epoch=3"], "Did you mean 'train.epochs'?"),
        (["task=2"], "task"),
        (["data.path=nowhere"], "nowhere"),
        (["train.batch_size=32"], "larger than the data set of 16; use train.batch_size=16 or less"),
    ],
)
def test_a_mistake_comes_out_before_the_queue(given: list[str], says: str, slurm: Path, photos: Path) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        mimkit.launch("pretrain", "mae_tiny", words(photos, *given))
    assert not (slurm / "run").exists()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (
            "echo 'sbatch: error: Batch job submission failed: Invalid account' >&2; exit 1",
            "Invalid account.",
        ),
        ("printf 'sbatch: error: QOS.\\nsbatch: error: Sorry\\n' >&2; exit 1", "the job: QOS; Sorry. What"),
        ("exit 3", "does not say why"),
    ],
)
def test_a_job_that_sbatch_does_not_take_is_told_in_its_words_and_leaves_nothing_behind(
    script: str, says: str, slurm: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (slurm / "tools" / "sbatch").write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(UserError, match=re.escape(says)):
        mimkit.launch("pretrain", "mae_tiny", words(photos, "account=none"))
    assert capfd.readouterr().err == "" and not (slurm / "run").exists()


def test_an_answer_of_sbatch_without_a_number_leaves_the_run_that_may_begin(
    slurm: Path, photos: Path
) -> None:
    (slurm / "tools" / "sbatch").write_text("#!/bin/sh\necho Welcome to the cluster\n")
    with pytest.raises(UserError, match=r'output "Welcome to the cluster", .*squeue --me'):
        mimkit.launch("pretrain", "mae_tiny", words(photos))
    assert load.resolve("run").train.run == "run"


def test_a_run_that_sbatch_does_not_take_back_stays_as_it_was(slurm: Path, photos: Path) -> None:
    mimkit.launch("pretrain", "mae_tiny", words(photos))
    (slurm / "tools" / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(UserError, match="sbatch"):
        mimkit.launch("pretrain", "run", resume=True)
    assert load.resolve("run").train.run == "run"


TOLD = """
import os, signal
from pathlib import Path
from mimkit.verbs.task import leave_when_told
signal.signal(signal.SIGTERM, lambda *_: print("let pass"))  # as submitit does
leave_when_told(Path("run"))
os.kill(os.getpid(), signal.{name})
print("goes on")
"""


@pytest.mark.parametrize(
    ("executor", "name", "code", "out"),
    [
        ("local", "SIGTERM", 130, ""),
        ("local", "SIGINT", 130, ""),
        ("slurm", "SIGTERM", 0, "let pass\ngoes on\n"),  # SLURM ends what shall end
    ],
)
def test_a_task_that_is_told_before_it_trains_leaves_at_once(
    executor: str, name: str, code: int, out: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TOLD.format(name=name)],
        env={**os.environ, "SUBMITIT_EXECUTOR": executor},
        capture_output=True,
        text=True,
    )
    said = "Stopped, with nothing to save; continue with `mimkit pretrain run --resume`.\n" if code else ""
    assert (done.returncode, done.stdout, done.stderr) == (code, out, said)


def test_a_task_hears_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    done = subprocess.run(
        [sys.executable, "-m", "mimkit.verbs.task", "-u", "-m", "slow", str(tmp_path / "run" / "jobs")],
        env={**os.environ, "SUBMITIT_EXECUTOR": "local"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130
    assert (
        done.stderr
        == f"Stopped, with nothing to save; continue with `mimkit pretrain {tmp_path}/run --resume`.\n"
    )


def test_a_ctrl_c_while_a_job_begins_names_the_job_that_goes_on(tmp_path: Path) -> None:
    class Begun:
        job_id = "4711"

        @property
        def state(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="job 4711 has begun and goes on; end it with `kill 4711`"):
        _await_ears(Begun(), [tmp_path / "log"])


def test_a_job_on_this_machine_is_started_to_ignore_ctrl_c_and_a_closed_terminal() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)]
    ask = "import signal; print([signal.getsignal(n) is signal.SIG_IGN for n in (signal.SIGINT, signal.SIGHUP)])"
    with _in_the_background():
        done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    assert done.stdout == "[True, True]\n"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)] == before


def test_a_recipe_is_not_chosen_for_a_machine_that_is_elsewhere(slurm: Path, photos: Path) -> None:
    with pytest.raises(UserError, match=r"name a recipe \(mae_tiny"):
        mimkit.launch("pretrain", photos, [])


@pytest.mark.parametrize(
    ("verb", "recipe", "says"),
    [
        ("pretrain", "finetune_vit_tiny", "mimkit finetune"),
        ("finetune", "mae_tiny", "mimkit pretrain"),
        ("finetune", "finetune_vit_tiny", "labels"),
    ],
)
def test_the_verb_and_the_recipe_must_fit(
    verb: str, recipe: str, says: str, slurm: Path, photos: Path
) -> None:
    with pytest.raises(UserError, match=says):
        mimkit.launch(verb, recipe, words(photos))
    assert not (slurm / "run").exists()


def test_without_submitit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'mimkit\[slurm\]'"):
        mimkit.launch("pretrain", "mae_tiny", words(photos, "nodes=4"))


def test_without_slurm_and_for_an_unknown_cluster_it_says_what_there_is(
    monkeypatch: pytest.MonkeyPatch, photos: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no SLURM on this machine"):
        mimkit.launch("pretrain", "mae_tiny", words(photos))
    with pytest.raises(UserError, match="Did you mean 'slurm'"):
        mimkit.launch("pretrain", "mae_tiny", words(photos), "slrum")
    with pytest.raises(UserError, match="has one node"):
        mimkit.launch("pretrain", "mae_tiny", words(photos, "nodes=2"), "local")


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("90", 90),
        ("1:30", 2),
        ("24:00:00", 1440),
        ("2-12", 3600),
        ("1-06:30", 1830),
        ("1-06:30:00", 1830),
        ("0", 1),
    ],
)
def test_times_are_read_as_sbatch_reads_them(text: str, length: int) -> None:
    assert minutes(text) == length


def test_options_of_a_job_have_no_dot_and_are_no_part_of_a_recipe() -> None:
    given = ["nodes=4", "train.epochs=9", "name=first", "gpus=8", "data.path=a=b", "photos"]
    options, overrides = split(given)
    assert options == {"nodes": "4", "gpus": "8"}
    assert overrides == ["train.epochs=9", "name=first", "data.path=a=b", "photos"]
