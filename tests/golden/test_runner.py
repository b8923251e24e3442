"""The runner itself: what it calls different, which adapter it picks, and that unseen folders of cases run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from .adapters import families, find
from .runner import Case, _assign, _seed, faults, load_cases

CASES = Path(__file__).parent / "cases" / "mae"
ROOT = Path(__file__).parents[2]


def case_with(tmp_path: Path, tolerance: float = 1e-3, **want: np.ndarray) -> Case:
    np.savez(tmp_path / "made.npz", **want)
    spec = {"name": "made", "tolerance": {"float64": tolerance, "float32": 1.0}, "outputs": {}, "inputs": {}}
    return Case("made", tmp_path, spec)


def test_the_tolerance_grows_with_the_largest_wanted_value_but_never_below_one(tmp_path: Path) -> None:
    case = case_with(tmp_path, small=np.array([0.1, 0.0]), large=np.array([1000.0, 0.0]))
    assert not faults(case, {"small": [0.1009, 0], "large": [1000, 0.9]}, torch.float64)
    wrong = faults(case, {"small": [0.1011, 0], "large": [1000, 1.1]}, torch.float64)
    assert [sentence.split(":")[0] for sentence in wrong] == ["small", "large"]
    assert not faults(case, {"small": [0.2, 0], "large": [1000, 1.1]}, torch.float32)


def test_a_missing_output_another_shape_a_nan_and_another_name_are_faults(tmp_path: Path) -> None:
    case = case_with(tmp_path, a=np.zeros(2), b=np.zeros((2, 1)), c=np.zeros(1), d=np.array(["x"]))
    got = {"b": np.zeros(2), "c": np.array([np.nan]), "d": np.array(["y"])}
    assert len(faults(case, got, torch.float64)) == 4


def test_an_output_that_the_published_code_leaves_undefined_is_not_compared(tmp_path: Path) -> None:
    case = case_with(tmp_path, loss=np.array(np.nan), rest=np.ones(2))
    assert not faults(case, {"rest": torch.ones(2)}, torch.float64)


def test_the_longest_matching_prefix_serves_a_case() -> None:
    assert find("mae_forward_of_an_unseen_size") is families()["mae_forward"]
    assert find("mae_loss") is families()["mae_loss"]
    assert find("never_heard_of") is None


def test_edits_and_seeds_are_read_from_their_sentences() -> None:
    edited = _assign(np.zeros((2, 3, 4)), "then image[0, :, :2] = -0.5")
    assert (edited[0, :, :2] == -0.5).all() and edited.sum() == -3
    assert (_seed(7, {}), _seed("500+k", {"k": 3})) == (7, 503)
    with pytest.raises(ValueError, match="cannot carry out"):
        _assign(np.zeros(2), "made friendlier")


def test_an_unseen_folder_runs_case_by_case_and_an_unknown_family_fails(tmp_path: Path) -> None:
    specs = {case.name: case.spec for case in load_cases(CASES)}
    for system, name, new in (
        ("one", "patchify", "patchify_renamed"),
        ("two", "grid_masking", "grid_masking_again"),
        ("two", "patchify", "unheard_of"),
    ):
        folder = tmp_path / system
        folder.mkdir(exist_ok=True)
        shutil.copyfile(CASES / f"{name}.npz", folder / f"{new}.npz")
        file = folder / "cases.json"
        known = json.loads(file.read_text()) if file.exists() else []
        file.write_text(json.dumps([*known, specs[name] | {"name": new}]))
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "tests/golden/test_cases.py",
            "--golden",
            tmp_path,
            "-rA",
            "-q",
            "-p",
            "no:cacheprovider",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    test = "tests/golden/test_cases.py::test_matches_the_published_outputs"
    for line in (
        ("PASSED", "one/patchify_renamed"),
        ("PASSED", "two/grid_masking_again"),
        ("FAILED", "two/unheard_of"),
    ):
        assert f"{line[0]} {test}[{line[1]}]" in run.stdout, run.stdout
    assert "no adapter serves 'unheard_of'" in run.stdout
