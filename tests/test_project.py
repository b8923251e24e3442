"""What README, docs and the tested set promise, held against the package: pages, names, keys and pins."""

import importlib.util
import re
import sys
import tomllib
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from mimkit.recipes import faults, load

ROOT = Path(__file__).parent.parent
TRACKERS = {"wandb", "mlflow", "trackio"}  # hosted services' clients: optional writers that no test runs
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# `key.path=value` in a command or between backticks; not in what a command printed.
KEY = re.compile(r"(?<![\w/.-])((?:encoder|method|data|optimiser|schedule|train|log)\.[a-z_.]+)=")
PRINTED = re.compile(r"<!-- output of: .+? -->\n```\w*\n.*?```", re.S)


def name(requirement: str) -> str:
    """The package that a requirement names, spelt as the index spells it."""
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_key_that_a_page_names_exists(page: Path) -> None:
    unknown = {key for key in KEY.findall(PRINTED.sub("", page.read_text())) if faults.find(key) is None}
    assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_output_on_a_page_was_written_by_its_command(page: Path) -> None:
    for block in PRINTED.findall(page.read_text()):
        command = re.match(r"<!-- output of: (.+?) -->", block)[1]
        assert f"```console\n$ {command}\n" in block


def test_every_verb_has_a_page_and_stands_in_the_readme() -> None:
    from mimkit.cli.app import command

    readme = (ROOT / "README.md").read_text()
    for verb in command().commands:
        assert (ROOT / "docs" / "verbs" / f"{verb}.md").exists(), verb
        assert f"`mimkit {verb}" in readme


def test_the_readme_lists_the_recipes_of_pre_training() -> None:
    listed = re.findall(r"^\| `(mae_\w+)` \|", (ROOT / "README.md").read_text(), re.M)
    assert listed == [name for name in load.names() if name.startswith("mae_")]


def test_every_file_that_a_page_names_exists() -> None:
    for page in PAGES:
        for path in re.findall(r"`((?:src|docs|tests)/[\w/.-]+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_every_dependency_that_is_tested_has_a_pin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    wanted = {name(each) for each in project["dependencies"] + extras} - TRACKERS - {"mimkit"}
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+( *;.+)?", pin) for pin in pins)
    assert wanted <= {name(pin) for pin in pins}


def test_the_citation_file_can_be_read() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == "Apache-2.0"
    assert all(reference["title"] and reference["authors"] for reference in citation["references"])


def _docs(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script, ROOT / "docs" / f"{script}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_page_on_scale_are_what_its_arithmetic_gives() -> None:
    scale = _docs("scale")
    page = scale.PAGE.read_text()
    assert scale.filled(page, scale.Machine()) == page


HOW = "60 epochs on imagenet_samples; 5000 images of cifar10, 5-fold; accuracy in %, mean ± std of seeds"
ALONE = [f"mae_tiny, {HOW}", "knn     trained   33.7 ± 1.5   best layer [6, 9, 12]"]
BESIDE = [HOW, "mae_tiny   knn     trained   33.7 ± 1.5", "mcmae_tiny linear  random    41.0 ± 0.2"]


@pytest.mark.parametrize("printed", [ALONE, BESIDE, ALONE + BESIDE])
def test_a_table_of_transfer_fills_its_own_block_and_leaves_the_other(
    printed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs log between the rows is left out."""
    fill = _docs("fill")
    monkeypatch.setattr(fill, "DOCS", tmp_path)
    markers = [f"<!-- begin: {name} -->\nold\n<!-- end: {name} -->\n" for name in fill.TRANSFER]
    (tmp_path / "results.md").write_text("".join(markers))
    (tmp_path / "printed.log").write_text(
        "collected 1 item\n\n" + "\nstep 5/6  loss 1.2\n".join(printed) + "\n.\n"
    )
    fill.fill_transfer(tmp_path / "printed.log")
    page = (tmp_path / "results.md").read_text()
    for lines, marker in zip((ALONE, BESIDE), markers, strict=True):
        inside = set(lines) <= set(printed)
        assert (marker in page) == (not inside) and ("\n".join(lines) in page) == inside


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_the_models_of_the_page_on_scale_cost_what_is_counted(number: int) -> None:
    import torch

    from mimkit.analysis import cost
    from mimkit.recipes import build

    said = _docs("scale").MODELS[number]
    kept = []
    for checkpointing in ("false", "true"):
        recipe = load.resolve(said.name, ["data.channels=3", f"encoder.checkpointing={checkpointing}"])
        model = build.method(recipe)
        half = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
        kept.append(cost.activation_bytes(model, recipe.data.size, half))
    assert kept == pytest.approx([said.kept, said.checkpointed], rel=1e-2)
    assert cost.parameters(model) == pytest.approx(said.parameters, rel=1e-3)
    plain = build.method(load.resolve(said.name, ["data.channels=3"]))
    assert cost.step_flops(plain, recipe.data.size) == pytest.approx(said.flops, rel=1e-3)
