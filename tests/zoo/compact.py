"""Makes `published*.json`, the shapes of the published files with the blocks of one name laid together.

From the root: python tests/zoo/compact.py ../shared/reference/mae/checkpoints.json > tests/zoo/published.json
and with mcmae for `published_mcmae.json`.
"""

import json
import re
import sys
from pathlib import Path

BLOCK = re.compile(r"(?<=blocks\.|locks\d\.|.layer\.|layers\.)\d+(?=\.)")


def compact(entries: dict) -> dict:
    """Entry -> {name with # for the block's number: [shape, number of blocks]}; shared keys are copied in."""
    made = {}
    for name, entry in entries.items():
        if name.startswith("_"):
            continue
        shapes = dict(entries[entry["same_keys_as"]]["keys"] if "same_keys_as" in entry else entry["keys"])
        shapes |= entry.get("added", {})
        together: dict[str, list] = {}
        for key, shape in shapes.items():
            together.setdefault(BLOCK.sub("#", key), []).append((key, shape))
        rows: dict[str, list] = {}
        for pattern, members in together.items():
            if all(shape == members[0][1] for _, shape in members):
                rows[pattern] = [members[0][1], len(members)]
            else:  # blocks that differ
                rows |= {key: [shape, 1] for key, shape in members}
        assert expand(rows) == {key: tuple(shape) for key, shape in shapes.items()}
        made[name] = rows
    return made


def expand(rows: dict) -> dict[str, tuple[int, ...]]:
    """The inverse for one entry: every name and its shape."""
    return {
        key.replace("#", str(i)): tuple(shape) for key, (shape, count) in rows.items() for i in range(count)
    }


if __name__ == "__main__":
    whole = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in compact(whole).items())
    print(f"{{\n{rows}\n}}")
