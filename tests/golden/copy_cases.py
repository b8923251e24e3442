"""Copies the cases of a system that adapters serve into `cases/`, so that the tests need nothing beside the checkout.

From the root: python -m tests.golden.copy_cases ../shared/reference/mae/golden mae
"""

import json
import shutil
import sys
from pathlib import Path

from .adapters import find
from .runner import load_cases


def copy_cases(source: Path, system: str) -> list[str]:
    """Write cases/<system>/ anew; the names that were copied."""
    target = Path(__file__).parent / "cases" / system
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    served = [case for case in load_cases(source) if find(case.name)]
    lines = ",\n".join(json.dumps(case.spec) for case in served)
    (target / "cases.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    for case in served:
        arrays = case.folder / f"{case.name}.npz"
        if arrays.is_file():  # else its numbers stand in the case
            shutil.copyfile(arrays, target / arrays.name)
    return [case.name for case in served]


if __name__ == "__main__":
    print(*copy_cases(Path(sys.argv[1]), sys.argv[2]), sep="\n")
