"""The page of `mimkit analyze` in a real browser: silent console, nothing loaded, dots that speak, patches that can be
clicked, and a picture of each section that is not empty. Skipped where there is no Chromium.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Page, browser, chromium
from PIL import Image

import mimkit

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium on this machine (apt-get install chromium)"
)

SMALL = ("data.size=48", "encoder.patch=8", "train.precision=fp32")
TIP = "document.getElementById('tip')"
DRAWN = "document.getElementById('viewer').dataset.drawn"
SECTIONS = ("summary", "attention", "maps", "likeness", "directions", "features", "training", "settings")


@pytest.fixture(scope="module")
def report(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analysis")
    for name, slope in (("steep", 0.1), ("gentle", 0.02)):
        rows = [json.dumps({"step": step, "loss": 1.0 - slope * step}) for step in range(1, 6)]
        (folder / name).mkdir()
        (folder / name / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    models, runs = ["random:vit:48x3x3", "random:vit:64x4x4"], [folder / "steep", folder / "gentle"]
    return mimkit.analyze(models, few, SMALL, folder / "out", images=8, runs=runs).report


@pytest.fixture(scope="module")
def page(report: Path) -> Iterator[Page]:
    with browser() as opened:
        opened.look(1200, 900)
        opened.open(report)
        opened.wait_for(DRAWN)
        yield opened
        assert opened.said == [], "the console says something"


MIDDLE = """(() => {
  const e = document.querySelector(`%s`);
  e.scrollIntoView({block: "center", behavior: "instant"});
  const b = e.getBoundingClientRect();
  return [b.left + b.width / 2, b.top + b.height / 2];
})()"""


def middle(page: Page, selector: str) -> tuple[float, float]:
    """Of an element that is scrolled into sight."""
    x, y = page.js(MIDDLE % selector)
    return x, y


def test_the_page_loads_nothing_but_itself(page: Page, report: Path) -> None:
    assert {url for url in page.requests if not url.startswith("data:")} == {report.resolve().as_uri()}
    assert page.js("document.title") == "What did random:vit:48x3x3 and random:vit:64x4x4 learn?"


def test_a_dot_says_whose_it_is_when_it_is_pointed_at(page: Page) -> None:
    x, y = middle(page, "#distance-1-dots-2 use")
    page.move(x, y)
    said = page.wait_for(
        "document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent"
    )
    assert said.startswith("random:vit:64x4x4, layer 2,") and said.endswith(" px")
    page.move(2, 2)
    page.wait_for("document.getElementById('tip').hidden")


@pytest.mark.parametrize(
    ("mark", "says"),
    [
        ("#cka-0-cell-2-3 path", "layer 2, layer 3: "),
        ("#cka-between-0-cell-3-4 path", "random:vit:48x3x3, layer 3, random:vit:64x4x4, layer 4: "),
        ("#spectrum-1-line-3 use:nth-of-type(2)", "random:vit:64x4x4, layer 4, direction "),
        ("#training-0-run-1 use:nth-of-type(5)", "gentle, step 5: loss 0.9"),
    ],
)
def test_cells_spectra_and_training_curves_speak_too(page: Page, mark: str, says: str) -> None:
    x, y = middle(page, mark)
    size = page.js(f"document.querySelector(`{mark}`).getBoundingClientRect().width")
    off = 0.4 * size if size > 20 else 0  # far from the middle of a large cell, still on it
    page.move(x + off, y + off)
    tip = page.wait_for(f"(t => !t.hidden && t.textContent.startsWith('{says}') && t.textContent)({TIP})")
    assert tip.removeprefix(says).strip() or says[-1] != " "
    page.move(2, 2)
    page.wait_for(f"{TIP}.hidden")


def test_the_arrow_keys_read_the_dots_of_a_chart(page: Page) -> None:
    page.js("document.querySelector('#attention .plot').focus()")
    texts = []
    for _ in range(4):
        page.press("ArrowRight")
        texts.append(page.js("document.getElementById('tip').textContent"))
    assert [text.split(":")[-2].split(", ")[1:] for text in texts] == [
        ["layer 1", "head 0"],
        ["layer 1", "head 1"],
        ["layer 1", "head 2"],
        ["layer 2", "head 0"],
    ]
    page.press("Escape")


def test_a_clicked_patch_shows_where_it_looks(page: Page) -> None:
    before = page.js(DRAWN)
    pixels = page.js("document.querySelector('[data-part=map]').toDataURL()")
    x, y = middle(page, "#viewer [data-part=image]")
    width = page.js("document.querySelector('#viewer [data-part=image]').getBoundingClientRect().width")
    page.click(x - width * 0.4, y - width * 0.4)  # the first patch of six by six
    after = page.wait_for(f"{DRAWN} !== '{before}' && {DRAWN}")
    assert after.split("-")[4:] == ["0", "0"]
    assert page.js("document.querySelector('[data-part=map]').toDataURL()") != pixels
    assert "from row 1, column 1, most attention" in page.js(
        "document.querySelector('[data-part=said]').textContent"
    )


def test_layer_head_model_and_arrow_keys_choose_another_map(page: Page) -> None:
    def choose(name: str, value: int) -> None:
        page.js(
            f"(() => {{ const s = document.querySelector('[data-choice={name}]'); s.value = {value}; "
            "s.dispatchEvent(new Event('change')); })()"
        )

    choose("model", 1)
    choose("layer", 0)
    choose("head", 3)
    page.wait_for(f"{DRAWN}.startsWith('1-0-0-3')")
    row, column = (int(part) for part in page.js(DRAWN).split("-")[4:])
    page.js("document.querySelector('[data-part=image]').focus()")
    page.press("ArrowDown")
    page.press("ArrowRight")
    page.wait_for(f"{DRAWN} === '1-0-0-3-{row + 1}-{column + 1}'")
    page.js("document.querySelectorAll('.heads button')[1].click()")
    page.wait_for(f"{DRAWN}.startsWith('1-0-0-1')")


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False)])
def test_every_section_is_drawn_light_dark_and_on_a_phone(
    page: Page, tmp_path: Path, width: int, dark: bool
) -> None:
    page.look(width, 900, dark)
    assert page.js("document.documentElement.scrollWidth") <= width, "the page is wider than the screen"
    assert tuple(page.js("[...document.querySelectorAll('section')].map(s => s.id)")) == SECTIONS
    for name in SECTIONS:
        shown = np.asarray(
            Image.open(page.screenshot(tmp_path / f"{name}.png", f"section#{name}")).convert("L")
        )
        corner = int(np.median(shown))
        assert (corner < 80) == dark
        assert shown.std() > 5, f"{name} is empty"
    page.look(1200, 900)


def test_everything_that_can_be_used_has_a_name(page: Page) -> None:
    assert page.js("[...document.images].every(i => i.alt)")
    assert page.js(
        "[...document.querySelectorAll('.plot, canvas[data-part]')].every(e => e.getAttribute('aria-label'))"
    )
    assert page.js("document.querySelectorAll('h1').length") == 1
    ids = page.js("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
