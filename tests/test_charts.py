"""Charts of the analysis: every mark gets its own words, all panels share an axis, odd values do no harm."""

import re
from pathlib import Path

import numpy as np
import pytest

from mimkit import plots
from mimkit.errors import UserError
from mimkit.plots.sheets import evenly


def heads(model: str, *layers: list[float]) -> plots.Heads:
    return plots.Heads(model, [np.array(values) for values in layers], [1.0] * len(layers))


def marks(panel: plots.ChartPanel) -> list[str]:
    """What the marks of a panel say, in the order of the SVG."""
    figure, tips = plots.panel_of(panel)
    return re.findall(r'data-tip="([^"]+)"', plots.with_tips(plots.svg(figure, "x"), "x", tips))


def test_every_dot_says_model_layer_head_and_value() -> None:
    (panel,) = plots.head_dots(
        "d", "D", [heads("a & b", [0.5, 0.25], [0.125, 1.0])], "distance (px)", "px"
    ).panels
    assert marks(panel) == [
        "a &amp; b, layer 1, head 0: 0.5 px",
        "a &amp; b, layer 1, head 1: 0.25 px",
        "a &amp; b, layer 2, head 0: 0.125 px",
        "a &amp; b, layer 2, head 1: 1 px",
        "a &amp; b, layer 1, mean: 0.375 px",
        "a &amp; b, layer 2, mean: 0.5625 px",
    ]


def test_dots_keep_their_height_whoever_draws_them() -> None:
    """The mark with the largest value stands highest in the SVG."""
    (panel,) = plots.head_dots("d", "D", [heads("a", [0.1, 0.9, 0.4])], "kl").panels
    figure, tips = plots.panel_of(panel)
    text = plots.with_tips(plots.svg(figure, "x"), "x", tips)
    found = re.findall(r'<use data-tip="([^"]+)"[^>]* y="([\d.]+)"', text)
    heights = {tip: float(y) for tip, y in found if "head" in tip}
    assert sorted(heights, key=lambda tip: heights[tip]) == ["a, layer 1, head 1: 0.9", "a, layer 1, head 2: 0.4",
                                                              "a, layer 1, head 0: 0.1"]  # fmt: skip


def test_models_share_the_vertical_axis() -> None:
    chart = plots.head_dots("d", "D", [heads("a", [0.5]), heads("b", [20.0], [3.0])], "kl")
    limits = {plots.panel_of(panel)[0].axes[0].get_ylim() for panel in chart.panels}
    assert len(limits) == 1
    assert next(iter(limits))[0] == 0 and next(iter(limits))[1] > 20


def test_what_is_no_number_is_left_out() -> None:
    chart = plots.head_dots("d", "D", [heads("a", [np.nan], [np.nan, 0.5])], "kl")
    assert marks(chart.panels[0]) == ["a, layer 2, head 1: 0.5"]
    empty = plots.head_dots("d", "D", [plots.Heads("a", [np.array([np.nan])])], "kl")
    assert marks(empty.panels[0]) == []


def test_a_heat_map_is_cut_for_its_colours_and_says_what_was_measured() -> None:
    chart = plots.heat_maps("c", "C", [plots.HeatMap("a", np.array([[1.02, -0.1, 0.4]]))], 0.0)
    assert marks(chart.panels[0]) == [
        "layer 1, layer 1: 1.020",
        "layer 1, layer 2: -0.100",
        "layer 1, layer 3: 0.400",
    ]


def test_lines_of_models_with_different_depths_and_spectra_with_zeros_are_drawn(tmp_path: Path) -> None:
    lines = plots.layer_lines("l", "L", {"a": [1.0, 2.0], "b": [1.0, float("nan"), 3.0]}, "rank")
    spectra = plots.spectra("s", "S", {"a": [np.array([2.0, 1.0, 0.0]), np.zeros(3)]})
    for chart in (lines, spectra):
        plots.save(plots.chart_figure(chart), tmp_path / "x.png")
        text = plots.save_svg(plots.chart_figure(chart), tmp_path / "x.svg").read_text()
        assert "<svg" in text and "http://www.w3.org" in text
    assert [tip.partition(":")[0] for tip in marks(lines.panels[0])].count("b, layer 3") == 1


def test_a_spectrum_says_its_layer_and_direction_as_far_as_the_axis_goes() -> None:
    values = np.array([2.0, 1.0, 1e-5, 0.0])
    assert marks(plots.spectra("s", "S", {"a": [values, np.zeros(3)]}).panels[0]) == [
        "a, layer 1, direction 1 of 4: 1 of the largest",
        "a, layer 1, direction 2 of 4: 0.5 of the largest",
    ]
    long = np.linspace(1, 0.5, 768)
    said = marks(plots.spectra("s", "S", {"a": [long]}).panels[0])
    assert len(said) == 48 and said[-1] == "a, layer 1, direction 768 of 768: 0.5 of the largest"


def test_training_curves_say_run_step_and_value() -> None:
    runs = {
        "a": (np.array([1.0, 2.0, 3.0]), np.array([2.0, np.nan, 1.0])),
        "b": (np.arange(900.0), np.ones(900)),
    }
    (panel,) = plots.run_curves("t", "T", {"train/box_loss": runs}).panels
    said = marks(panel)
    assert said[:2] == ["a, step 1: train/box loss 2", "a, step 3: train/box loss 1"]
    assert len(said) == 50 and all(text.startswith("b, step ") for text in said[2:])


def test_axes_of_two_models_name_both_and_cut_long_names_at_the_front() -> None:
    names = ("a", "random:timm:swinv2_tiny_window8_256")
    (panel,) = plots.heat_maps("c", "C", [plots.HeatMap("a and b", np.full((1, 2), 0.5), names)]).panels
    axes = plots.panel_of(panel)[0].axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("layer of a", "layer of timm:swinv2_tiny_window8_256")
    assert marks(panel)[1] == "a, layer 1, random:timm:swinv2_tiny_window8_256, layer 2: 0.500"
    (panel,) = plots.heat_maps("c", "C", [plots.HeatMap("", np.ones((1, 1)), ("b" * 40, "a"))]).panels
    assert plots.panel_of(panel)[0].axes[0].get_ylabel() == "layer of …" + 29 * "b"


def test_a_model_keeps_its_colour_in_every_chart() -> None:
    """A chart that leaves out the first model draws the second as the others do."""
    one = plots.Heads("b", [np.array([0.5])], colour=1)
    dots = plots.panel_of(plots.head_dots("d", "D", [one], "kl").panels[0])[0].axes[0].lines[0]
    lines = plots.layer_lines("l", "L", {"b": [1.0, 2.0]}, "rank", colours={"a": 0, "b": 1})
    assert plots.panel_of(lines.panels[0])[0].axes[0].lines[0].get_color() == dots.get_color()


def test_a_row_without_a_first_picture_still_has_its_name() -> None:
    cell = np.zeros((4, 6, 3))
    sheet = plots.Sheet("s", "S", ("image", "head 0"), ("layer 1", "layer 2"), ((cell, cell), (None, cell)))
    assert [axes.get_ylabel() for axes in plots.sheet_figure(sheet).axes] == ["layer 1", "", "layer 2", ""]


def test_a_sheet_has_a_picture_for_each_cell_but_the_empty_ones(tmp_path: Path) -> None:
    cell = np.zeros((4, 6, 3))
    sheet = plots.Sheet("s", "S", ("one", "two"), ("a", "b"), ((cell, None), (cell, cell)))
    assert len(plots.sheet_figure(sheet).axes) == 3


def test_heat_is_black_at_nothing_and_brightest_at_the_top() -> None:
    shown = plots.heat(np.array([[0.0, 0.5, 1.0]])).sum(-1)[0]
    assert shown[0] < 0.1 and shown[0] < shown[1] < shown[2]
    assert np.isfinite(plots.heat(np.zeros((2, 2)))).all()


@pytest.mark.parametrize(
    ("count", "wanted", "found"), [(12, 4, [0, 4, 7, 11]), (3, 8, [0, 1, 2]), (1, 4, [0]), (9, 1, [8])]
)
def test_places_are_spread_evenly_over_what_there_is(count: int, wanted: int, found: list[int]) -> None:
    assert evenly(count, wanted) == found


def test_an_svg_that_cannot_be_written_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    chart = plots.layer_lines("l", "L", {"a": [1.0]}, "rank")
    with pytest.raises(UserError, match="cannot be written"):
        plots.save_svg(plots.chart_figure(chart), tmp_path / "file" / "x.svg")


def test_probes_of_several_models_share_their_axis_and_say_their_accuracy() -> None:
    good = [plots.ProbeCurve("linear, mean", [1, 2], [0.8, 0.9], [0.05, 0.3])]
    bad = [plots.ProbeCurve("linear, mean", [3], [0.4])]
    chart = plots.probe_chart({"a": (good, 0.5), "b": (bad, 0.5)})
    limits = {plots.panel_of(panel)[0].axes[0].get_ylim() for panel in chart.panels}
    assert len(limits) == 1 and next(iter(limits))[0] == pytest.approx(37)
    assert marks(chart.panels[0]) == [
        "a, layer 1, linear, mean: 80.0 %",
        "a, layer 2, linear, mean: 90.0 %",
    ]


def test_ticks_of_probes_reach_the_top_whatever_the_lines_do_and_stay_readable() -> None:
    deep = [plots.ProbeCurve("k-NN, mean", list(range(1, 37)), [0.55 + 0.005 * i for i in range(36)])]
    (panel,) = plots.probe_chart({"a": (deep, 0.5)}).panels
    axes = plots.panel_of(panel)[0].axes[0]
    ticks = axes.get_yticks().tolist()
    assert ticks[-1] == 100 and len(ticks) >= 4 and ticks[0] >= axes.get_ylim()[0]
    assert len(axes.get_xticks()) <= 14
