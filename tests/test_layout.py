"""What the source as a whole promises: no grid from the root of a count, openings that say what a file is, short files,
nothing printed outside the command line, no pickle.
"""

import ast
import re
from pathlib import Path

import pytest

import mimkit

SOURCE = Path(mimkit.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
ROOT_OF_A_COUNT = re.compile(
    r"int\([^()]*\*\*\s*(0?\.5|\(1\s*/\s*2\))|int\((math|np|numpy|torch)\.sqrt\(|isqrt\(|\.sqrt\(\)\.(int|long)\("
)

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))


def calls(file: Path) -> list[str]:
    """Names of everything that is called, dotted."""
    return [
        ast.unparse(node.func) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)
    ]


@every_file
def test_no_grid_is_taken_from_the_root_of_a_count(file: Path) -> None:
    found = [line for line in file.read_text().splitlines() if ROOT_OF_A_COUNT.search(line)]
    assert not found


@every_file
def test_a_file_opens_by_saying_what_it_is_and_stays_readable(file: Path) -> None:
    text = file.read_text()
    if text.strip():
        assert ast.get_docstring(ast.parse(text)) or file.name in ("__init__.py", "version.py")
    assert len(text.splitlines()) <= 450


@every_file
def test_only_the_command_line_prints(file: Path) -> None:
    if "cli" not in file.relative_to(SOURCE).parts:
        assert "print" not in calls(file)


@every_file
def test_nothing_is_unpickled_but_through_the_zoo(file: Path) -> None:
    loads = {
        call for call in calls(file) if call in ("pickle.load", "pickle.loads", "torch.load", "joblib.load")
    }
    assert not loads or file.relative_to(SOURCE) == Path("zoo/read.py")
