"""Writes into the pages what a command printed, so that no output in the docs is made up.

`python docs/fill.py [PAGE ...]` runs every command that a page names as `<!-- output of: COMMAND -->` and puts what
it printed into the fenced block below, with the exit code where that is not 0. All commands of all pages run in page
order in one scratch folder with images made from those of scikit-image (`make_images`), so a page may use a run that an
earlier page made. The pictures that a page shows are copied to docs/pictures. `--benchmarks FILE` fills the table of
benchmarks.md from the JSON of `python -m benchmarks --json FILE` instead, `--transfer FILE` and `--comparison FILE`
those of results.md.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
ORDER = [
    "start.md",
    "verbs/demo.md",
    "verbs/data.md",
    "verbs/pretrain.md",
    "verbs/reconstruct.md",
    "verbs/probe.md",
]
ORDER += [f"verbs/{verb}.md" for verb in ("finetune", "evaluate", "predict", "embed", "compare", "analyze")]
ORDER += ["concepts/weights.md", "verbs/plan.md", "verbs/report.md", "verbs/models.md", "verbs/recipes.md"]
ORDER += ["verbs/convert.md", "verbs/export.md", "gallery.md"]
BLOCK = re.compile(r"(<!-- output of: (?P<command>.+?) -->\n)```\w*\n.*?```\n", re.S)
COMPARISON = """## And for fine-tuning?

`mae_tiny` on 32-pixel images, pre-trained without labels on those photographs and on the training images of CIFAR-10,
and the same network with random weights, compared by [`mimkit compare`](verbs/compare.md) at three shares of the
labels; `run` is the pre-trained one. `make test-slow ARGS='-s tests/runs/test_comparison.py'` prints it.

```text
{table}
```
"""
TRANSFER = {  # block of results.md -> first line and rows of what test_transfer.py printed for it
    "transfer table": (r"mae_tiny, \d+ epochs on .+", r"(?:knn|linear) .+±.+"),
    "mcmae transfer table": (r"\d+ epochs on .+", r"(?:mae|mcmae)_tiny +(?:knn|linear) .+±.+"),
}
PHOTOS = [
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "hubble_deep_field",
    "retina",
    "immunohistochemistry",
    "camera",
]
PHOTOS += ["brick", "grass", "gravel", "coins", "moon", "page", "text", "cell"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", default=ORDER, help="pages to fill, such as verbs/models.md")
    parser.add_argument("--benchmarks", type=Path, help="JSON rows of python -m benchmarks")
    parser.add_argument("--transfer", type=Path, help="what tests/runs/test_transfer.py printed")
    parser.add_argument("--comparison", type=Path, help="what tests/runs/test_comparison.py printed")
    arguments = parser.parse_args()
    if arguments.benchmarks:
        rows = json.loads(arguments.benchmarks.read_text())
        replace_between(DOCS / "benchmarks.md", "benchmark table", benchmark_table(rows))
        return
    if arguments.transfer:
        fill_transfer(arguments.transfer)
        return
    if arguments.comparison:
        printed = re.search(
            r"^Accuracy in % on .+\n(?:.+\n)+?Fine-tuned, .+", arguments.comparison.read_text(), re.M
        )
        if printed is None:
            sys.exit(f"{arguments.comparison} holds no table of test_comparison.py; run pytest with -s.")
        replace_between(DOCS / "results.md", "comparison", COMPARISON.format(table=printed[0]))
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        make_images(scratch)
        for page in arguments.pages:
            path = DOCS / page
            path.write_text(BLOCK.sub(lambda found: filled(found, scratch), path.read_text()))
            take_pictures(path.read_text(), scratch)


def fill_transfer(printed: Path) -> None:
    """Write each table of test_transfer.py that the file holds into its own block; others keep what they have."""
    lines = [line.rstrip() for line in printed.read_text().splitlines()]
    tables = {name: table_of(lines, *patterns) for name, patterns in TRANSFER.items()}
    if not any(tables.values()):
        sys.exit(f"{printed} holds no table of test_transfer.py; run pytest with -s.")
    for name, table in tables.items():
        if table:
            replace_between(DOCS / "results.md", name, "\n".join(["```text", *table, "```\n"]))


def table_of(lines: list[str], first: str, row: str) -> list[str]:
    """The line that is `first` and the rows, which come as runs end, with what those log in between."""
    found = [line for line in lines if re.fullmatch(first, line)][:1]
    return found and [*found, *(line for line in lines if re.fullmatch(row, line))]


def filled(found: re.Match[str], scratch: Path) -> str:
    """The block below a marker, with the command and what it printed."""
    command = found["command"]
    print(f"$ {command}", file=sys.stderr, flush=True)
    folder = str(Path(sys.executable).parent)
    environment = os.environ | {"COLUMNS": "110", "PATH": f"{folder}:{os.environ['PATH']}", "TERM": "dumb"}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=scratch,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode == 1 or "Traceback" in done.stdout:
        sys.exit(f"{done.stdout}\nA fault, not an output: the page was left as it was.")
    lines = [line.rstrip() for line in done.stdout.replace(f"{scratch}/", "").splitlines()]
    exit_code = [f"[exit code {done.returncode}]"] if done.returncode else []
    text = "\n".join([f"$ {command}", *lines, *exit_code]).rstrip()
    return f"{found[1]}```console\n{text}\n```\n"


def take_pictures(text: str, scratch: Path) -> None:
    """Copy the pictures that a page shows (`pictures/PATH.png`, slashes as dashes) from what its commands drew."""
    for name in re.findall(r"pictures/([\w.-]+\.png)", text):
        for drawn in scratch.rglob("*.png"):
            if "-".join(drawn.relative_to(scratch).parts) == name:
                (DOCS / "pictures").mkdir(exist_ok=True)
                shutil.copyfile(drawn, DOCS / "pictures" / name)


def make_images(folder: Path) -> None:
    """photos/: 128 crops of sixteen photographs, 160 x 120; kinds/: 384 more, a class folder a photograph; mixed/: a
    few of photos/, some faulty; labelled/: 100 faces and 100 non-faces, 25 x 25.
    """
    import numpy as np
    from PIL import Image
    from skimage import data

    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name in PHOTOS:
        image = Image.fromarray(getattr(data, name)()).convert("RGB")
        image = image.resize((max(image.width, 320), max(image.height, 240)))
        for number in range(8):
            crop_of(image, rng).save(folder / "photos" / f"{name}-{number}.jpg", quality=90)
        kind, more = folder / "kinds" / name, np.random.default_rng(1)
        kind.mkdir(parents=True)
        for number in range(24):
            crop_of(image, more).save(kind / f"{number:02d}.jpg", quality=90)
    make_mixed(folder / "photos", folder / "mixed")
    for number, face in enumerate(data.lfw_subset()):
        kind = folder / "labelled" / ("face" if number < 100 else "other")
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray((face * 255).astype(np.uint8)).save(kind / f"{number:03d}.png")


def crop_of(image, rng):
    """A quarter or so of a photograph, 160 x 120."""
    left, top = rng.integers(image.width - 240 + 1), rng.integers(image.height - 180 + 1)
    return image.crop((left, top, left + 240, top + 180)).resize((160, 120))


def make_mixed(photos: Path, folder: Path) -> None:
    """Two whole pictures, a duplicate, a truncated one, one with a wrong extension, and a text named as a JPEG."""
    folder.mkdir()
    data = {
        name: (photos / f"{name}-0.jpg").read_bytes() for name in ("astronaut", "chelsea", "coffee", "rocket")
    }
    files = {"astronaut.jpg": data["astronaut"], "chelsea.jpg": data["chelsea"], "copy.jpg": data["chelsea"]}
    files |= {
        "coffee.jpg": data["coffee"][:2000],
        "rocket.png": data["rocket"],
        "notes.jpg": b"to do: more images",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)


def replace_between(page: Path, name: str, text: str) -> None:
    """Put `text` between the markers `<!-- begin: NAME -->` and `<!-- end: NAME -->` of a page."""
    begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->"
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}{text}{end}{after}")


def benchmark_table(rows: list[dict]) -> str:
    """The rows of `python -m benchmarks --json` as Markdown, and below the table a line of settings for each name."""
    lines = ["| name | metric | ours | theirs | unit | ratio |", "| --- " * 6 + "|"]
    for row in rows:
        numbers = f"{row['ours']:.4g} | {row['theirs']:.4g} | {row['unit']} | **{row['ratio']:.2f}**"
        lines.append(f"| `{row['name']}` | {row['metric']} | {numbers} |")
    names = list(dict.fromkeys(row["name"] for row in rows))
    said = [f"- `{name}`: {settings_of([r for r in rows if r['name'] == name])}" for name in names]
    return (
        "\n".join([*lines, "", "Settings, and the ratio of CPU times beside that of the clock:", "", *said])
        + "\n"
    )


def settings_of(rows: list[dict]) -> str:
    """What all rows of a benchmark share, then what each metric has of its own."""
    shared = dict(rows[0]["settings"].items())
    for row in rows[1:]:
        shared = {key: value for key, value in shared.items() if row["settings"].get(key) == value}
    parts = [plain(shared)] if shared else []
    for row in rows:
        own = {key: value for key, value in row["settings"].items() if key not in shared}
        if own:
            parts.append(f"{row['metric']}: {plain(own)}")
    return "; ".join(parts)


def plain(settings: dict) -> str:
    """`key value` in a line; what is off or usual is left out."""
    usual = {"compiled": False, "device": "cpu"}
    kept = {key: value for key, value in settings.items() if usual.get(key, ...) != value}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in kept.items())


if __name__ == "__main__":
    main()
