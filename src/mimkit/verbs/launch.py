"""`--launch slurm`: the same command as a job on a cluster, through submitit, one process a GPU.

Here the recipe is settled as far as it can be away from the data, checked, and kept in the run folder; each task of
the job then does no more than resume that run, which begins it where it has no checkpoint yet. So whatever starts the
job again (its time was up, it was preempted, a node failed), it goes on where it was. `--launch local` does the same
with processes on this machine. What submitit keeps of a job (a pickle of `Job`, output of each task) is in RUN/jobs.
"""

import contextlib
import importlib
import io
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from mimkit.data.sampling import steps_per_epoch
from mimkit.engine import checkpoint, run_folder, run_lock
from mimkit.engine.processes import ALONE
from mimkit.errors import Interrupted, MimkitError, UserError, counted, nearest
from mimkit.recipes import build, load
from mimkit.recipes.faults import JOB_OPTIONS
from mimkit.recipes.schema import Recipe
from mimkit.verbs import finetune, pretrain, task, training
from mimkit.verbs.files import writing
from mimkit.verbs.labels import labelled_sets
from mimkit.verbs.task import leave_when_told

log = logging.getLogger(__name__)

VERBS = {"pretrain": pretrain.run, "finetune": finetune.run}
CLUSTERS = ("slurm", "local")
COUNTS = ("nodes", "gpus", "tasks", "cpus", "mem")
NAMES = ("partition", "account", "qos", "constraint")
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")  # sbatch's: minutes, h:m:s, d-h, d-h:m:s
DEFAULTS = {"nodes": "1", "cpus": "8", "time": "1-0"}
FOLDER = "jobs"
NOTICE = 120  # seconds before the end of its time in which a job finishes its step and saves
SLOWEST_START = 30  # seconds that the tasks of a job on this machine have to begin
MOST_RESTARTS = 1000  # after its time was up; a run that fails is not started again
GRACE = 600  # seconds that a job which was told to end waits for SLURM to say whether it shall come back


@dataclass(frozen=True)
class Launched:
    """A job that was handed over: its number, its run folder, its processes, submitit's own handle on it."""

    id: str
    run: Path
    processes: int
    message: str
    job: Any


@dataclass(frozen=True)
class Job:
    """What every task of a job runs; submitit calls it, and asks `checkpoint` what to run the next time."""

    verb: str
    run: str
    overrides: tuple[str, ...] = ()

    def __call__(self) -> str:
        leave_when_told(Path(self.run))
        helpers = importlib.import_module("submitit.helpers")
        # all GPUs of the node stay visible: a process takes that of its LOCAL_RANK, as under torchrun
        helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        _log_here()
        try:
            return VERBS[self.verb](self.run, self.overrides, True).message
        except Interrupted as stopped:
            log.warning("%s", stopped)
            _leave(stopped.signals)
        except MimkitError as error:
            log.error("%s", error)
            raise SystemExit(error.exit_code) from error

    def checkpoint(self) -> Any:
        return importlib.import_module("submitit.helpers").DelayedSubmission(self)


def launch(
    verb: str,
    source: str | Path,
    words: Sequence[str] = (),
    cluster: str = "slurm",
    resume: bool = False,
) -> Launched:
    """See `mimkit.api.launch`."""
    submitit = _submitit()
    options, overrides = split(words)
    settings = _settings(cluster, options)
    tasks, nodes = settings["tasks_per_node"], settings["nodes"]
    recipe, folder, made = _run_of(verb, source, overrides, cluster, resume, tasks * nodes)
    special: dict[str, Any] = {f"{cluster}_max_num_timeout": MOST_RESTARTS}
    if cluster == "local":
        special["local_python"] = f"{shlex.quote(sys.executable)} -u -m {task.__name__}"
    executor = submitit.AutoExecutor(folder / FOLDER, cluster=cluster, **special)
    executor.update_parameters(name=recipe.name, stderr_to_stdout=True, **settings)
    try:
        job = _submitted(executor, Job(verb, str(folder), tuple(overrides) if resume else ()))
    except _NotTakenError as error:
        if folder in made:
            shutil.rmtree(folder / FOLDER, ignore_errors=True)
            run_folder.take_back(folder, made)
        raise UserError(str(error)) from error
    if cluster == "local":
        _await_ears(job, [job.task(number).paths.stdout for number in range(tasks)])
    each = f"nodes={nodes} tasks={tasks} gpus={settings.get('gpus_per_node', 0)}"
    stop = "kill" if cluster == "local" else "scancel"
    message = (
        f"Job {job.job_id} on {cluster}, {each}: {counted(tasks * nodes, 'process')} in all. Run folder {folder}; its "
        f"log is {job.paths.stdout}; end it with `{stop} {job.job_id}`. Stopped by the cluster, it goes on by itself."
    )
    return Launched(str(job.job_id), folder, tasks * nodes, message, job)


def split(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The options of a job (`nodes=4`: a key without a dot that is no part of a recipe) and the overrides."""
    options: dict[str, str] = {}
    overrides = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and "." not in key and key not in Recipe.model_fields:
            options[key] = value
        else:
            overrides.append(word)
    return options, overrides


def minutes(text: str) -> int:
    """The minutes in a time as sbatch takes it: `90`, `24:00:00`, `2-12`, `1-06:30:00`. Raises UserError."""
    found = TIME.fullmatch(text)
    if found is None:
        raise UserError(
            f"--launch: time={text} given; allowed: minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS, as time=24:00:00."
        )
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None or len(numbers) == 3:
        hours, mins, seconds = (*numbers, 0, 0)[:3]
    else:  # m or m:s
        hours, (mins, seconds) = 0, (*numbers, 0)[:2]
    return max(1, int(days or 0) * 1440 + hours * 60 + mins + (seconds > 0))


def _submitit() -> Any:
    try:
        return importlib.import_module("submitit")
    except ImportError:
        raise UserError("--launch needs submitit; install it with `pip install 'mimkit[slurm]'`.") from None


class _NotTakenError(Exception):
    """The cluster refuses a job."""


def _submitted(executor: Any, job: Job) -> Any:
    """submitit's handle on the job. Raises _NotTakenError with the words of sbatch, and UserError where it is not clear
    what has become of it.
    """
    utils = importlib.import_module("submitit.core.utils")
    try:
        # submitit repeats those words on standard error
        with contextlib.redirect_stderr(io.StringIO()), _in_the_background():
            return executor.submit(job)
    except utils.FailedJobError as error:
        lines = [line.strip().removeprefix("sbatch: error: ").rstrip(".") for line in str(error).splitlines()]
        why = "; ".join(filter(None, lines)) or "it does not say why"
        raise _NotTakenError(
            f"--launch slurm: sbatch does not take the job: {why}. What it is asked for stands among the overrides "
            f"({', '.join(f'{key}=' for key in JOB_OPTIONS)})."
        ) from error
    except utils.FailedSubmissionError as error:
        raise UserError(
            f"--launch slurm: {str(error).splitlines()[0]}, which has no job's number; `squeue --me` says whether the "
            "job is there all the same."
        ) from error


def _await_ears(job: Any, logs: Sequence[Path]) -> None:
    """Return when all tasks of a job on this machine have begun to write, and so hear a `kill`: until then submitit
    would let it pass or end without a word. Raises Interrupted for a Ctrl-C, which does not reach the job.
    """
    end = time.monotonic() + SLOWEST_START
    try:
        while not all(path.is_file() and path.stat().st_size for path in logs):
            if job.state != "RUNNING" or time.monotonic() > end:
                return
            time.sleep(0.02)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted, but job {job.job_id} has begun and goes on; end it with `kill {job.job_id}`.",
            [signal.SIGINT],
        ) from None


@contextlib.contextmanager
def _in_the_background() -> Iterator[None]:
    """What is started meanwhile goes on when Ctrl-C is pressed or the terminal closed, as a shell's `nohup ... &` does:
    a job on this machine stays in the group of processes that started it, which gets both.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _settings(cluster: str, options: Mapping[str, str]) -> dict[str, Any]:
    """What submitit's executor is told. Raises UserError for a cluster or an option that there is not."""
    if cluster not in CLUSTERS:
        raise UserError(
            f"--launch {cluster} is not known; use {' or '.join(CLUSTERS)}.{nearest(cluster, CLUSTERS)}"
        )
    if cluster == "slurm" and (shutil.which("sbatch") is None or shutil.which("srun") is None):
        raise UserError(
            "--launch slurm: there is no SLURM on this machine (sbatch and srun are not found); start it on a login "
            "node of the cluster, or try it here with --launch local."
        )
    for key in options:
        if key not in JOB_OPTIONS:
            raise UserError(
                f"--launch: there is no option {key}=.{nearest(key, JOB_OPTIONS)} Known: {', '.join(JOB_OPTIONS)}; "
                "what belongs to the recipe has a dot, as train.epochs=."
            )
    given = {**DEFAULTS, "gpus": str(torch.cuda.device_count() if cluster == "local" else 1), **options}
    counts = {key: _count(key, given[key]) for key in COUNTS if key in given}
    gpus = counts["gpus"]
    tasks = counts.get("tasks", max(1, gpus))
    if 0 < gpus < tasks:
        raise UserError(
            f"--launch: tasks={tasks} a node are more than its gpus={gpus}; each process needs its own."
        )
    if cluster == "local" and counts["nodes"] > 1:
        raise UserError("--launch local has one node, this machine; use tasks= for several processes.")
    settings: dict[str, Any] = {
        "nodes": counts["nodes"],
        "tasks_per_node": tasks,
        "cpus_per_task": counts["cpus"],
        "timeout_min": minutes(given["time"]),
        **({"gpus_per_node": gpus} if gpus else {}),
        **({"mem_gb": counts["mem"]} if "mem" in counts else {}),
    }
    if cluster == "slurm":
        settings |= {f"slurm_{key}": options[key] for key in NAMES if key in options}
        # one process that fails takes the others along, which would wait for it for hours
        settings |= {"slurm_signal_delay_s": NOTICE, "slurm_srun_args": ["--kill-on-bad-exit=1"]}
    return settings


def _count(key: str, text: str) -> int:
    least = 0 if key == "gpus" else 1
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"--launch: {key}={text} given; allowed: a whole number from {least}.")
    return int(text)


def _run_of(
    verb: str, source: str | Path, overrides: Sequence[str], cluster: str, resume: bool, world: int
) -> tuple[Recipe, Path, list[Path]]:
    """The recipe, its run folder, which holds the recipe from here on, and the folders that were made for it. All
    mistakes come out now, not in the job.
    """
    training.check_resumed(source, overrides, resume)
    if verb == "pretrain":
        _check_named(source, cluster)
        recipe = pretrain.find_recipe(source, overrides)
        recipe.pretraining  # noqa: B018  (which says what a recipe for a task is for)
    else:
        recipe = finetune.find_start(source, overrides).recipe
        recipe.tuning  # noqa: B018
    training.check_source(source, recipe, verb, resume)
    build.check_processes(recipe, world)
    images = build.source(recipe) if verb == "pretrain" else labelled_sets(recipe).train
    steps_per_epoch(len(images) * recipe.data.repeats, recipe.train.batch_size)  # at least one
    recipe, folder, made = training.name_run(recipe, ALONE)
    run_folder.claim(folder, resume)
    with run_lock.hold(folder):
        if not resume:
            with writing(folder / load.RUN_RECIPE) as file:
                file.write(load.dump(recipe))
        elif checkpoint.saved(folder):
            training.check_unchanged(folder, recipe)
    return recipe, folder, made


def _check_named(source: str | Path, cluster: str) -> None:
    """Raise UserError where a recipe would be chosen for images on a machine that will not train it."""
    named = str(source) in load.names() or Path(source).suffix in (".yaml", ".yml") or training.is_run(source)
    if cluster != "local" and not named and Path(source).expanduser().exists():
        raise UserError(
            f"--launch {cluster}: a recipe for images is chosen for the machine that trains it, which is not this one; "
            f"name a recipe ({', '.join(load.names()[:3])}, ...) with data.path={source}."
        )


def _leave(signals: frozenset[int]) -> NoReturn:
    """End a task whose run was stopped and saved: come back at once, or when SLURM says so, or not at all."""
    if os.environ.get("RANK", "0") != "0":
        raise SystemExit(
            0
        )  # an exit code would end the first task before it has put the job back into the queue
    told = signals - {signal.SIGUSR2}
    if signal.SIGUSR2 in signals or not told:
        signal.raise_signal(signal.SIGUSR2)  # for submitit, which puts the job back into the queue and leaves
    elif signal.SIGTERM in told and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        # somebody's scancel, or the grace before a preemption: SLURM ends the job, and starts it again after the latter
        time.sleep(GRACE)
    raise SystemExit(Interrupted.exit_code)


def _log_here() -> None:
    """The library's log on standard error, the story told by the first process alone."""
    logger = logging.getLogger("mimkit")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO if os.environ["RANK"] == "0" else logging.WARNING)
