"""The report of a run, from folders as a run leaves them: whole, young, torn, empty."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mimkit.analysis.findings import findings
from mimkit.analysis.report import columns_of, read_run, write_report
from mimkit.errors import UserError

RECIPE = "name: mae_tiny\nabout: |\n  Two lines\n  of <text>\ntrain: {epochs: 4}\n"


def rows(count: int, probes: bool = True) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    made = []
    for step in range(1, count + 1):
        row: dict[str, Any] = {
            "step": step,
            "epoch": step / 25,
            "loss": 0.5 + 0.5 * float(np.exp(-step / 30)) + 0.01 * float(rng.standard_normal()),
            "lr": 1e-3,
            "grad_norm": 1.0,
            "images_per_second": 100.0,
            "seconds": 0.5,
            "data_seconds": 0.2,
        }
        if step % 50 == 0 and probes:
            row |= {"trivial/model": row["loss"], "trivial/zero": 1.0, "trivial/image_mean": 0.8}
            row |= {
                "trivial/patch_mean": 0.4,
                "quality/effective_rank": 20.0 + step,
                "quality/entropy_uniform": 4.2,
            }
            row |= {f"quality/entropy_layer{i}": 4.0 for i in (1, 2)}
            row |= {f"probe/knn_mean_layer{i}": 0.5 + step / 1000 for i in (6, 12)}
            row |= {f"probe/knn_mean_layer{i}_std": 0.02 for i in (6, 12)}
        made.append(row)
    return made


def folder(path: Path, lines: list[dict[str, Any]], torn: str = "") -> Path:
    (path / "samples").mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    (path / "recipe.yaml").write_text(RECIPE)
    return path


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href"):
                self.links.append(str(value))


def test_a_whole_run_has_a_page_that_loads_nothing_and_a_picture(tmp_path: Path) -> None:
    run = folder(tmp_path / "first", rows(100), torn='{"step": 101, "lo')
    (run / "skipped.jsonl").write_text('{"step": 3, "id": 7, "name": "a/<b>.jpg", "reason": "truncated"}\n')
    (run / "nonfinite.jsonl").write_text(
        '{"step": 9, "loss": "nan", "grad_norm": "nan", "ids": [1, 2], "module": "m"}\n'
    )
    for step in range(6):
        Image.new("RGB", (1500, 30), (step, 0, 0)).save(run / "samples" / f"step-{step:07}.png")
    page = write_report(run)
    assert page == run / "report.html"
    text = page.read_text()
    read = Page(text)
    assert all(link.startswith(("data:", "#")) for link in read.links)
    assert "script" not in read.tags and "@import" not in text and "url(http" not in text
    assert len(read.ids) == len(set(read.ids))
    assert read.tags.count("svg") == 9 and read.tags.count("img") == 4
    assert all(f'id="{name}"' in text for name in re.findall(r"url\(#([^)]+)\)", text))
    assert "epoch 4 of 4: it is finished" in text
    assert "a/&lt;b&gt;.jpg" in text and "<b>" not in re.sub(r"<b>[^<]*</b>", "", text)
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    picture = Image.open(run / "report.png")
    picture.verify()
    assert picture.width == 1100
    assert (run / "report.png").stat().st_size < 500_000


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_young_run_has_a_report_too(tmp_path: Path, count: int) -> None:
    run = folder(tmp_path / "young", rows(count, probes=False))
    text = write_report(run, tmp_path / "out.html").read_text()
    assert f"stands at step {count}" in text
    assert "too few to judge" in text
    assert (tmp_path / "out.png").exists()


def test_a_run_without_recipe_samples_or_diaries_has_a_report(tmp_path: Path) -> None:
    run = tmp_path / "bare"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(30, probes=False)))
    assert "bare" in write_report(run, tmp_path).read_text()
    assert (tmp_path / "report.png").exists()


def test_losses_that_are_not_finite_leave_a_gap(tmp_path: Path) -> None:
    lines = rows(60)
    for row in lines[:3]:
        row["loss"] = None
    lines[5]["loss"] = float("nan")
    assert "fell" in write_report(folder(tmp_path / "gaps", lines)).read_text()
    for row in lines:
        row["loss"] = None
    assert "No step has a finite loss" in write_report(folder(tmp_path / "none", lines)).read_text()


def test_a_folder_that_is_no_run_is_named_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no run folder: it holds no metrics.jsonl"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="is no run folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no finished step yet"):
        write_report(folder(tmp_path / "new", []))
    with pytest.raises(UserError, match=r"name .*picture.html or a folder"):
        write_report(folder(tmp_path / "run", rows(3)), tmp_path / "picture.png")


def test_waiting_for_data_is_worked_out_from_seconds() -> None:
    assert columns_of(rows(4))["data_share"][1] == pytest.approx([0.4] * 4)
    ready = [row | {"data_share": 0.1} for row in rows(4)]
    assert columns_of(ready)["data_share"][1] == pytest.approx([0.1] * 4)


def test_recipes_that_are_no_yaml_do_not_matter(tmp_path: Path) -> None:
    run = folder(tmp_path / "r", rows(2))
    (run / "recipe.yaml").write_text("{[")
    assert read_run(run).recipe == {}


def said(columns: dict[str, list[float]], **more: Any) -> str:
    series = {name: (np.arange(1.0, len(v) + 1), np.array(v)) for name, v in columns.items()}
    made = findings(series, more.get("epochs"), more.get("skipped", []), more.get("failures", []))
    return " ".join(finding.text for finding in made)


def test_the_loss_is_judged_by_its_ends() -> None:
    falling = list(np.linspace(1.0, 0.5, 40))
    assert "fell from 0.9936 to 0.5064 (-49 %)" in said({"loss": falling})
    assert "rose" in said({"loss": falling[::-1]})
    assert "stayed" in said({"loss": [1.0] * 40})
    assert "19 steps are too few" in said({"loss": falling[:19]})
    assert "1 step is too few" in said({"loss": falling[:1]})


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (0.4, "edges or texture"),
        (0.55, "beats every predictor that sees no more"),
        (0.7, "not yet more than image mean"),
        (1.0, "not learned anything"),
    ],
)
def test_the_loss_stands_beside_the_trivial_predictors(model: float, words: str) -> None:
    trivial = {"zero": 1.0, "image_mean": 0.6, "nearest_visible": 0.9, "patch_mean": 0.5, "model": model}
    assert words in said({f"trivial/{name}": [value] for name, value in trivial.items()})


def test_a_probe_moves_only_beyond_its_spread() -> None:
    probe = {"probe/knn_mean_layer6": [0.5, 0.6], "probe/linear_cls_layer12": [0.5, 0.8]}
    assert "linear on the class token of layer 12: from 50.0 % at step 1 to 80.0 %" in said(probe)
    assert "got better" in said(probe)
    wide = probe | {"probe/linear_cls_layer12_std": [0.4, 0.4]}
    assert "no change that its spread would not explain" in said(wide)
    assert "got worse" in said({"probe/knn_mean_layer6": [0.6, 0.5]})
    assert "measured once" in said({"probe/knn_mean_layer6": [0.6]})


def test_collapse_skips_failures_and_starving_are_said() -> None:
    assert "collapsing" in said({"quality/effective_rank": [30.0, 8.0]})
    assert "collapsing" not in said({"quality/effective_rank": [30.0, 20.0]})
    twice = [{"name": "a.jpg", "reason": "x"}, {"name": "a.jpg", "reason": "x"}]
    assert "1 image could not be read" in said({}, skipped=twice)
    assert "Every image could be read" in said({})
    assert "2 steps were not finite and changed nothing, the last one at step 9" in said(
        {}, failures=[{"step": 4}, {"step": 9}]
    )
    assert "more data.workers" in said({"data_share": [0.1, 0.1, 0.5, 0.6]})
    assert "waiting for data." in said({"data_share": [0.9, 0.9, 0.05, 0.05]})
    assert "epoch 2 of 4." in said({"step": [50], "epoch": [2.0]}, epochs=4)
