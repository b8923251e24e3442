"""Each verb hands its arguments to `mimkit.api` and prints what comes back; the API itself is stood in for here."""

import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mimkit
from mimkit import cli
from mimkit.cli.text import table, tell
from mimkit.recipes import load

ROWS = [SimpleNamespace(file=f"{i}.jpg", kind="odd_size", severity="note", detail="small") for i in range(50)]
ROWS += [SimpleNamespace(file="naïve.jpg", kind="broken", severity="error", detail="truncated")]
ANSWERS: dict[str, Any] = {
    "pretrain": SimpleNamespace(
        run=Path("runs/a"), steps=8, loss=0.5, message="Done: runs/a, 8 steps, loss 0.5."
    ),
    "reconstruct": Path("picture.png"),
    "report": Path("runs/a/report.html"),
    "plan": SimpleNamespace(lines=lambda: ["111.9 M parameters", "9.8 GMACs"]),
    "demo": SimpleNamespace(lines=["Loss 1.9 -> 0.8"], pictures=[Path("demo/a.png")]),
    "data_show": Path("sheet.png"),
    "data_prepare": SimpleNamespace(
        out="small", written=12, kept=3, skipped=(SimpleNamespace(name="a.jpg", reason="truncated"),)
    ),
    "data_stats": SimpleNamespace(
        images=9, unreadable=1, other=2, channels=2, bits=16, mean=(0.5, 0.25), std=(0.1, 1 / 3)
    ),
    "data_check": SimpleNamespace(rows=ROWS, summary=lambda: "photos/: 60 images, 10 readable"),
    "probe": SimpleNamespace(lines=lambda: ["layer  pooling", "   12  mean"]),
    "finetune": SimpleNamespace(message="Done: 8 steps."),
    "evaluate": SimpleNamespace(
        lines=lambda: ["top-1  90.0 ± 1.0 %"],
        rows=[
            SimpleNamespace(name="a", images=9, accuracy=1.0, precision=0.5, predicted=18, taken_for=None),
            SimpleNamespace(
                name="b", images=9, accuracy=0.0, precision=float("nan"), predicted=0, taken_for=("a", 9)
            ),
            SimpleNamespace(
                name="c", images=0, accuracy=float("nan"), precision=0.0, predicted=0, taken_for=None
            ),
        ],
        pictures=[Path("confusion.png")],
    ),
    "predict": SimpleNamespace(lines=lambda: ["a.jpg  cat  90%"], out=Path("p.jsonl"), sheet=Path("p.png")),
    "embed": SimpleNamespace(lines=lambda: ["9 images, 48 values each"]),
    "compare": SimpleNamespace(lines=lambda: ["start", "mine wins"]),
    "analyze": SimpleNamespace(lines=lambda: ["- local heads in all layers"], report=Path("a/report.html")),
    "models": [
        SimpleNamespace(
            name="vit_x", patch=(16, 8), params=5_500_000, gmacs=1.25, levels=[(16, 8)], paper="none"
        )
    ],
}


class FakeApi:
    """Remembers the calls and gives the answers above."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def verb(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            return ANSWERS[name]

        return call


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake, module = FakeApi(), types.ModuleType("mimkit.api")
    for name in ANSWERS:
        setattr(module, name, fake.verb(name))
    monkeypatch.setitem(sys.modules, "mimkit.api", module)
    monkeypatch.setattr(mimkit, "api", module, raising=False)
    return fake


def test_pretrain_takes_images_a_recipe_with_overrides_or_a_run(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["pretrain", "photos/"]) == 0
    assert cli.main(["pretrain", "mae_base", "data.path=photos/", "train.epochs=200"]) == 0
    assert cli.main(["pretrain", "runs/a", "--resume"]) == 0
    assert [(args, kwargs["resume"]) for _, args, kwargs in api.calls] == [
        (("photos/", []), False),
        (("mae_base", ["data.path=photos/", "train.epochs=200"]), False),
        (("runs/a", []), True),
    ]
    assert capsys.readouterr().out == "Done: runs/a, 8 steps, loss 0.5.\n" * 3


def test_reconstruct_takes_ratios_with_commas(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reconstruct", "runs/a", "photos/", "--out", "p.png", "--ratios", "0.5,.75", "--images", "3"]
    assert cli.main(words) == 0
    assert cli.main(["reconstruct", "runs/a"]) == 0
    assert [args for _, args, _ in api.calls] == [
        ("runs/a", "photos/", Path("p.png"), [0.5, 0.75], 3),
        ("runs/a", None, Path("reconstruction.png"), None, 8),
    ]
    assert capsys.readouterr().out == "Wrote picture.png\n" * 2


def test_ratios_that_are_no_numbers_are_refused(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reconstruct", "runs/a", "--ratios", "0.5;0.7"]) == 2
    assert capsys.readouterr().err == (
        "mimkit: --ratios: '0.5;0.7' given; allowed: numbers with commas between them, as 0.5,0.75.\n"
    )
    assert api.calls == []


def test_plan_report_demo_and_show_print_what_they_get(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["plan", "mae_base"], ["report", "runs/a"], ["demo"], ["data", "show", "photos/"]):
        assert cli.main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "111.9 M parameters",
        "9.8 GMACs",
        "Wrote runs/a/report.html",
        "Loss 1.9 -> 0.8",
        "  demo/a.png",
        "Wrote sheet.png",
    ]


def test_check_shows_the_worst_first_and_says_what_it_leaves_out(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "check", "photos/", "--json", "c.json", "--jobs", "2"]) == 0
    assert api.calls[0][1] == ("photos/", Path("c.json"), 2, 16)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "file       problem   severity  detail",
        "naïve.jpg  broken    error     truncated",
        "0.jpg      odd size  note      small",
    ]
    assert lines[-4:] == [
        "... and 11 more; --json FILE writes all of them.",
        "",
        "photos/: 60 images, 10 readable",
        "Wrote c.json",
    ]


def test_stats_prepare_probe_and_models_print_what_they_found(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "stats", "photos/"]) == 0
    assert cli.main(["data", "prepare", "photos/", "small", "--short-side", "64"]) == 0
    assert cli.main(["probe", "runs/a", "data.path=faces"]) == 0
    assert cli.main(["models"]) == 0
    assert capsys.readouterr().out.splitlines()[:-2] == [
        "9 images measured, 1 unreadable, 2 with other channels left out; 2 channels of 16 bits",
        "data.mean=[0.5000, 0.2500]",
        "data.std=[0.1000, 0.3333]",
        "small: 12 images written, 3 kept from before, 1 skipped.",
        "  a.jpg: truncated",
        "layer  pooling",
        "   12  mean",
        "encoder  patch  parameters  GMACs  strides  paper",
        "vit_x    16x8        5.5 M    1.2  16x8     none",
    ]
    assert api.calls[1][1] == ("photos/", Path("small"), 64)
    assert (api.calls[1][2]["shards"], api.calls[1][2]["quality"], api.calls[1][2]["jobs"]) == (
        None,
        92,
        None,
    )
    assert api.calls[2][1] == ("runs/a", ["data.path=faces"], None)


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no text exist elsewhere rarely")
def test_a_name_that_is_no_text_is_printed_all_the_same() -> None:
    code = (
        "import sys, types, mimkit; from mimkit.cli import main; api = types.ModuleType('mimkit.api'); "
        "api.report = lambda *_: 'caf\\udce9.html'; sys.modules['mimkit.api'] = api; sys.exit(main(['report', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stdout) == (0, "Wrote caf\\udce9.html\n")


def test_recipes_lists_all_and_shows_one_with_its_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == load.names()
    assert cli.main(["recipes", "list"]) == 0
    assert capsys.readouterr().out == listed
    assert cli.main(["recipes", "show", "mae_tiny", "train.epochs=7"]) == 0
    shown = capsys.readouterr().out
    assert shown == load.show(load.resolve("mae_tiny", ["train.epochs=7"]))


def test_faults_of_a_recipe_reach_the_terminal_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "show", "mae_tiny", "train.epoch=7", "data.size=x"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "mimkit: 2 faults in the recipe mae_tiny and its overrides:",
        "  train.epoch: there is no such key. Did you mean 'train.epochs'?",
        "  data.size: 'x' given; allowed: a whole number of at least 1, or two as [height, width].",
    ]


def test_transfer_verbs_hand_over_their_arguments(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["finetune", "finetune_vit_tiny", "data.path=x"]) == 0
    assert cli.main(["finetune", "runs/a", "--resume"]) == 0
    assert (
        cli.main(["predict", "runs/a", "x/*.jpg", "--out", "o.jsonl", "--sheet", "s.png", "--top", "2"]) == 0
    )
    assert (
        cli.main(["embed", "runs/a", "x", "--out", "f.npy", "--dense", "--layer", "3", "data.size=64"]) == 0
    )
    assert [(name, args) for name, args, _ in api.calls] == [
        ("finetune", ("finetune_vit_tiny", ["data.path=x"])),
        ("finetune", ("runs/a", [])),
        ("predict", ("runs/a", "x/*.jpg", [], Path("o.jsonl"), Path("s.png"), 2)),
        ("embed", ("runs/a", "x", Path("f.npy"), ["data.size=64"], None, True, 3)),
    ]
    assert [call[2].get("resume") for call in api.calls[:2]] == [False, True]
    assert capsys.readouterr().out.splitlines() == [
        *["Done: 8 steps."] * 2,
        *("a.jpg  cat  90%", "Wrote p.jsonl and p.png", "9 images, 48 values each"),
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["embed", "runs/a", "x", "f.npy"], "'f.npy' stands where overrides do (key.path=value)"),
        (["embed", "runs/a", "x", "f.npy"], "named with --out f.npy."),
        (["predict", "runs/a", "x", "data.size=64", "o.jsonl"], "named with --out o.jsonl."),
        (["predict", "runs/a", "1.jpg", "2.jpg", "3.jpg"], "a pattern stands in quotation marks"),
        (["data", "show", "x", "sheet.png"], "named with --out sheet.png."),
        (
            ["reconstruct", "runs/a", "x", "r.png"],
            "(r.png); what to write is named with --out.",
        ),
        (["report", "runs/a", "r.html"], "(r.html); what to write is named with --out."),
        (
            ["export", "runs/a", "out", "--to", "timm"],
            "Missing option '--out'.",
        ),
        (["demo", "out"], "(out); what to write is named with --out."),
    ],
)
def test_a_file_to_write_that_stands_alone_is_pointed_to_its_option(
    words: list[str], says: str, api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert says in capsys.readouterr().err and not api.calls


def test_evaluate_shows_the_worst_class_first(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "runs/a", "data.path=x", "--json", "e.json"]) == 0
    assert api.calls[0][1] == ("runs/a", ["data.path=x"], Path("e.json"), None)
    assert capsys.readouterr().out.splitlines() == [
        "top-1  90.0 ± 1.0 %",
        "",
        "class  images  found %  right %  taken for",
        "b           9      0.0        -  a (9)",
        "a           9    100.0     50.0",
        "",
        "Wrote confusion.png",
        "Wrote e.json",
    ]


def test_compare_takes_starts_wherever_they_stand(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--inits", "random", "runs/a", "timm:vit=x", "data.path=x", "train.epochs=3"]
    assert cli.main(["compare", *words, "--seeds", "2", "--shares", "0.1,1", "--out", "c"]) == 0
    assert cli.main(["compare", "--inits", "random", "--inits", "runs/a", "data.path=x"]) == 0
    starts = ["random", "runs/a", "timm:vit=x"]
    overrides = ["data.path=x", "train.epochs=3"]
    assert [args for _, args, _ in api.calls] == [
        (starts, overrides, Path("c"), 2, [0.1, 1.0], None),
        (["random", "runs/a"], ["data.path=x"], Path("compare"), 3, [0.01, 0.1, 1.0], None),
    ]
    assert capsys.readouterr().out.splitlines()[:3] == [
        "start",
        "mine wins",
        "Wrote c/compare.png and c/compare.json",
    ]


def test_analyze_takes_models_and_overrides_in_any_order(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["runs/a", "data.size=64", "timm:vit", "--data", "x", "--out", "a", "--images", "9", "--labels"]
    assert cli.main(["analyze", *words, "--runs", "r1", "--runs", "r2", "--only", "attention, cka"]) == 0
    assert cli.main(["analyze", "runs/a", "--data", "x"]) == 0
    models = ["runs/a", "timm:vit"]
    assert [args for _, args, _ in api.calls] == [
        (models, "x", ["data.size=64"], Path("a"), 9, True, ["r1", "r2"], ["attention", "cka"]),
        (["runs/a"], "x", [], Path("analysis"), 256, False, [], []),
    ]
    assert capsys.readouterr().out.splitlines()[:2] == ["- local heads in all layers", "Wrote a/report.html"]


def test_analyze_hands_over_which_cka_is_meant(api: FakeApi) -> None:
    words = ["--cka-examples", "tokens", "--cka-estimator", "biased", "--cka-block", "0"]
    assert cli.main(["analyze", "runs/a", "--data", "x", *words]) == 0
    assert cli.main(["analyze", "runs/a", "--data", "x"]) == 0
    given = [
        tuple(words[f"cka_{name}"] for name in ("examples", "estimator", "block"))
        for _, _, words in api.calls
    ]
    assert given == [("tokens", "biased", 0), (None, None, None)]


def test_columns_stand_under_their_heads_for_wide_letters_and_marks_too() -> None:
    lines = table(("file", "problem"), [("图像.jpg", "broken"), ("cafe\u0301.jpg", "broken")]).splitlines()
    assert lines == ["file      problem", "图像.jpg  broken", "cafe\u0301.jpg  broken"]


def test_of_several_processes_the_first_one_tells_how_it_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        tell(f"Done in {rank}.")
    assert capsys.readouterr().out == "Done in 0.\n"
