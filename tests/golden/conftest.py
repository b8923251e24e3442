"""`pytest tests/golden --golden DIR` runs every case under DIR instead of those that came with the tests."""

from pathlib import Path

import pytest

from .adapters import find
from .runner import load_cases

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        metavar="DIR",
        help="run the golden cases of DIR (a folder with cases.json, or folders of such below it)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make every case a test of its own: in float64 all, in float32 those whose family is compared there too."""
    single = "case_in_float32" in metafunc.fixturenames
    name = "case_in_float32" if single else "case"
    if name not in metafunc.fixturenames:
        return
    given = metafunc.config.getoption("--golden")
    folder = Path(given) if given else HERE / "cases"
    cases = load_cases(folder)
    if not cases:
        raise pytest.UsageError(f"--golden {folder}: there is no cases.json in or below it.")
    if single:
        cases = [case for case in cases if (family := find(case.name)) and family.float32]
    metafunc.parametrize(name, cases, ids=[f"{case.system}/{case.name}" for case in cases])
