"""The way in and out of the command line: help that is quick, one sentence and an exit code for every mistake."""

import logging
import os
import signal
import subprocess
import sys
import types
from typing import Any

import pytest

import mimkit
from mimkit import cli
from mimkit.errors import DataError, Interrupted, UserError
from mimkit.version import __version__

VERBS = ["demo", "pretrain", "reconstruct", "probe", "plan", "report", "models"]
WORDS = [["data"], *[["data", w] for w in ("check", "stats", "prepare", "show")]]
WORDS += [["recipes"], ["recipes", "list"], ["recipes", "show"]]


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `mimkit report` end in `error`."""

    def report(*_: object) -> None:
        raise error

    api: Any = types.ModuleType("mimkit.api")
    api.report = report
    monkeypatch.setitem(sys.modules, "mimkit.api", api)
    monkeypatch.setattr(mimkit, "api", api, raising=False)


def python(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=180)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["pretrain", "--help"],
        ["pretrian"],
        ["plan"],
        ["recipes"],
        ["recipes", "show", "mae_bsae"],
    ],
)
def test_help_and_mistakes_import_neither_torch_nor_rich(words: list[str]) -> None:
    code = (
        f"import sys; from mimkit.cli import main; main({words!r}); "
        "print(sorted({'torch', 'rich', 'numpy', 'torchvision'} & set(sys.modules)), file=sys.stderr)"
    )
    assert python("-c", code).stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "ACTIVE")])
def test_threads_wait_without_spinning_unless_the_user_has_chosen(name: str, value: str) -> None:
    code = (
        "import os; from mimkit.cli import main; main(['--version']); "
        "print([os.environ.get(n) for n in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')])"
    )
    plain = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}

    def printed(env: dict[str, str]) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=180
        )
        return done.stdout.splitlines()[-1]

    assert printed(plain) == "['1000', None]"
    chosen = {"GOMP_SPINCOUNT": None, "OMP_WAIT_POLICY": None, name: value}
    assert printed({**plain, name: value}) == str(list(chosen.values()))


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_training_starts_with_a_whole_heap_in_the_same_process_and_other_verbs_as_they_are() -> None:
    code = (
        "import os; start = os.getpid(), os.environ.get('GLIBC_TUNABLES')\n"
        "from mimkit.__main__ import main; main(); print(*start)"
    )
    plain = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}

    def ran(verb: str, env: dict[str, str]) -> tuple[bool, str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, verb, "--help"], stdout=subprocess.PIPE, text=True, env=env
        )
        number, setting = process.communicate(timeout=60)[0].splitlines()[-1].split()
        return int(number) == process.pid, setting

    whole = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
    assert ran("pretrain", plain) == ran("finetune", plain) == (True, whole)
    assert ran("recipes", plain) == (True, "None")
    own = "glibc.malloc.arena_max=2"
    assert ran("pretrain", {**plain, "GLIBC_TUNABLES": own}) == (True, own)


def test_the_package_runs_as_a_module() -> None:
    assert python("-m", "mimkit", "--version").stdout == f"mimkit {__version__}\n"
    wrong = python("-m", "mimkit", "pretrian")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[0] == "mimkit: No such command 'pretrian'. Did you mean 'pretrain'?"
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("words", [*[[verb] for verb in VERBS], *WORDS], ids=" ".join)
def test_the_help_of_every_verb_shows_an_example(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--help"]) == 0
    assert f"  mimkit {' '.join(words)}" in capsys.readouterr().out.split("Options:")[0].partition("\n")[2]


def test_no_words_at_all_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb}" in out for verb in (*VERBS, "data", "recipes"))
    assert "..." not in out.partition("Commands:")[2]  # no sentence is cut off


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pretrain"], "mimkit: Missing argument 'SOURCE'."),
        (["data", "prepare", "a", "b"], "mimkit: Missing option '--short-side'."),
        (["data", "prepare", "a", "b", "--short-side", "x"], "mimkit: Invalid value for '--short-side'"),
        (["pretrain", "a", "--resum"], "mimkit: No such option: --resum"),
        (["data"], "mimkit: Missing command."),
        (["data", "chekc", "x"], "mimkit: No such command 'chekc'. Did you mean 'check'?"),
    ],
)
def test_a_wrong_usage_is_one_sentence_and_where_to_read_on(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(sentence)
    assert second.startswith("See `mimkit ") and second.endswith(" --help`.")


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UserError("There is no x."), 2, "There is no x."),
        (DataError("It is torn."), 3, "It is torn."),
        (Interrupted("Stopped at step 7; saved."), 130, "Stopped at step 7; saved."),
        (KeyboardInterrupt(), 130, "interrupted."),
        (OSError(28, "No space left on device", "runs/a/x"), 2, "runs/a/x: No space left on device."),
        (PermissionError(13, "Permission denied", "out.png"), 2, "out.png: Permission denied."),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_what_a_person_can_mend_is_one_sentence_with_its_exit_code(
    error: BaseException,
    code: int,
    sentence: str,
    debug: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raising(monkeypatch, error)
    assert cli.main(["report", "x", *(["--debug"] if debug else [])]) == code
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == f"mimkit: {sentence}"
    assert ("Traceback" in err) == debug


@pytest.mark.parametrize(
    "error", [ValueError("odd"), EOFError("early"), OSError(5, "Input/output error"), KeyError("k")]
)
def test_an_error_that_nobody_foresaw_keeps_its_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, error)
    assert cli.main(["report", "x"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("Traceback") for line in lines)
    assert any(line.startswith(type(error).__name__) for line in lines)
    assert lines[-1].startswith("mimkit: this is a fault in mimkit")


def test_debug_may_stand_before_the_verb_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, UserError("There is no x."))
    assert cli.main(["--debug", "report", "x"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_reader_that_leaves_early_is_met_with_silence() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as broken:
        words = [sys.executable, "-m", "mimkit", "recipes", "show", "mae_base"]
        done = subprocess.run(words, stdout=broken, stderr=subprocess.PIPE, text=True, timeout=180)
    assert done.stderr == ""
    assert done.returncode == 141


def test_the_librarys_log_goes_to_the_terminal_plainly_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--version"])
    log = logging.getLogger("mimkit.somewhere")
    with cli._log_on_terminal():
        log.info("lr 6.0e-4 = 1.5e-4 x %d / 256", 1024)
        log.warning("the loader starves the model")
        log.debug("unseen")
    log.warning("a notebook that goes on after the command has its own say in this")
    assert (
        capsys.readouterr().err == "lr 6.0e-4 = 1.5e-4 x 1024 / 256\nwarning: the loader starves the model\n"
    )


def test_of_several_processes_only_the_first_tells_its_story() -> None:
    code = (
        "import logging; from mimkit.cli import _log_on_terminal; log = logging.getLogger('mimkit.x')\n"
        "with _log_on_terminal(): log.info('told'); log.warning('heard')"
    )
    for rank, said in (("0", "told\nwarning: heard\n"), ("1", "warning: heard\n")):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "RANK": rank}
        )
        assert done.stderr == said


CTRL_C = """
import atexit, importlib.abc, os, runpy, signal, sys

def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)

class WhenItIsImported(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "{stage}":
            ctrl_c()

sys.meta_path.insert(0, WhenItIsImported())
if "{stage}" == "exit":
    atexit.register(ctrl_c)
sys.argv = ["mimkit", *{words}]
runpy.run_module("mimkit", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("stage", "code", "says"),
    [
        ("mimkit.cli", 130, "mimkit: interrupted.\n"),
        ("mimkit.errors", 130, "mimkit: interrupted.\n"),
        ("typer", 130, "mimkit: interrupted.\n"),
        ("mimkit.recipes.load", 130, "mimkit: interrupted.\n"),
        ("exit", 0, ""),  # all is said and done
    ],
)
def test_ctrl_c_at_any_stage_is_one_line_and_a_code(stage: str, code: int, says: str) -> None:
    done = python("-c", CTRL_C.format(stage=stage, words=["recipes", "list"]))
    assert (done.returncode, done.stderr) == (code, says)


@pytest.mark.parametrize("stage", ["mimkit.cli", "typer", "mimkit.recipes.load", "exit"])
def test_a_background_job_that_was_started_to_ignore_ctrl_c_goes_on(stage: str) -> None:
    code = CTRL_C.format(stage=stage, words=["recipes", "list"])
    done = python("-c", f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{code}")
    assert (done.returncode, done.stderr) == (0, "") and "mae_tiny" in done.stdout


def test_what_a_library_makes_of_ctrl_c_is_an_interrupt_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def report(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as stopped:
            raise ImportError("initialisation of multiarray failed") from stopped

    raising(monkeypatch, ImportError())
    monkeypatch.setattr(mimkit.api, "report", report)
    assert cli.main(["report", "runs/a"]) == 130
    assert capsys.readouterr().err == "mimkit: interrupted.\n"
