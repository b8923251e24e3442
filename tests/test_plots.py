"""Pictures: every figure becomes a valid file, and what a reader must be told stands in it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimkit import plots
from mimkit.errors import UserError
from mimkit.plots.curves import thin
from mimkit.plots.files import BYTES
from mimkit.plots.images import GUESSED, LEAKING
from mimkit.plots.run import probe_curves


def images(count: int = 2, height: int = 32, width: int = 48, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).random((count, height, width, channels)).astype(np.float32)


def views(original: np.ndarray, leaking: bool = False) -> plots.Views:
    hidden = np.zeros(original.shape[:3], dtype=bool)
    hidden[:, :16] = True
    return plots.Views("50 % hidden", hidden, original * 0.5, original * 0.9 if leaking else None)


def texts(figure: object) -> str:
    from matplotlib.text import Text

    return " ".join(t.get_text() for t in figure.findobj(Text)).replace("\n", " ")  # type: ignore[attr-defined]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(32, 48), (300, 260)])
def test_reconstructions_of_any_channels_and_size_are_valid_pictures(
    tmp_path: Path, channels: int, size: tuple[int, int]
) -> None:
    original = images(2, *size, channels)
    path = plots.save(
        plots.reconstruction(original, views(original), ["a", "b"], "title"), tmp_path / "deep" / "x.png"
    )
    with Image.open(path) as picture:
        picture.verify()
    assert path.stat().st_size < 1.5 * BYTES
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]


def test_the_panel_that_leaks_says_so_and_is_drawn_only_where_it_exists() -> None:
    original = images()
    plain = texts(plots.reconstruction(original, views(original)))
    leaking = texts(plots.reconstruction(original, views(original, leaking=True)))
    assert LEAKING in leaking and GUESSED in leaking
    assert "leaks" not in plain


def test_many_images_stand_in_two_blocks_that_fit_a_screen() -> None:
    original = images(8)
    figure = plots.reconstruction(original, views(original, leaking=True), [f"{i}.jpg" for i in range(8)])
    assert len(figure.axes) == 8 * 4
    width, height = 100 * figure.get_size_inches()
    assert width < 1400 and height < 700
    assert sum(axes.get_title() == "original" for axes in figure.axes) == 2
    assert sorted(axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()) == [
        f"{i}.jpg" for i in range(8)
    ]


def test_hidden_pixels_are_hidden_and_visible_ones_stay() -> None:
    original = images(1)
    figure = plots.reconstruction(original, views(original))
    masked = figure.axes[1].images[0].get_array()
    assert np.ptp(masked[:16]) == 0
    np.testing.assert_allclose(masked[16:], original[0, 16:], atol=1e-6)


def test_several_ratios_stand_side_by_side() -> None:
    original = images()
    figure = plots.reconstruction_grid(original, [views(original)] * 3)
    assert len(figure.axes) == 2 * 7


def test_the_channels_that_are_shown_are_named() -> None:
    original = images(channels=5)
    assert "[channels 0, 1, 2 of 0 to 4]" in texts(plots.reconstruction(original, views(original), title="t"))
    chosen = plots.rgb(original[0], (4, 2, 0))
    np.testing.assert_array_equal(chosen, original[0][..., [4, 2, 0]])
    with pytest.raises(UserError, match="0 to 4"):
        plots.rgb(original[0], (5, 2, 0))
    with pytest.raises(UserError, match="one or three"):
        plots.rgb(original[0], (1, 2))


def test_grey_stays_grey_and_two_channels_show_the_first() -> None:
    for channels in (1, 2):
        image = images(1, channels=channels)[0]
        shown = plots.rgb(image)
        assert all(np.array_equal(shown[..., c], image[..., 0]) for c in range(3))


def test_dark_sixteen_bit_images_are_stretched_and_the_title_says_so() -> None:
    original = images() * 0.02
    figure = plots.reconstruction(original, views(original), title="t")
    assert "white 0.0199" in texts(figure)
    assert figure.axes[0].images[0].get_array().max() > 0.95


def test_not_a_number_is_drawn_as_black() -> None:
    original = images()
    original[0, 0, 0] = np.nan
    plots.svg(plots.reconstruction(original, views(original)), "x")


def test_a_contact_sheet_takes_images_of_any_sizes_and_shortens_names(tmp_path: Path) -> None:
    given = [images(1, 20 + 30 * i, 90 - 10 * i)[0] for i in range(7)]
    names = [f"a/very/long/folder/of/photographs/{i}.jpg" for i in range(7)]
    figure = plots.contact_sheet(given, names, "seven", columns=3)
    assert "…" in texts(figure) and "6.jpg" in texts(figure)
    plots.save(figure, tmp_path / "sheet.png")
    with pytest.raises(UserError, match="no images"):
        plots.contact_sheet([], [])


@pytest.mark.parametrize("count", [0, 1, 3, 1000])
def test_loss_curves_of_any_length(tmp_path: Path, count: int) -> None:
    steps = np.arange(count)
    loss = 1 / (1 + steps / 100)
    figure = plots.loss_curve(steps, loss, loss, {"patch_mean": 0.5, "image_mean": 40.0})
    plots.save(figure, tmp_path / "loss.png")
    assert "image mean 40" in texts(figure)


def test_a_flat_loss_and_gaps_are_drawn(tmp_path: Path) -> None:
    loss = np.full(50, 0.7)
    loss[10:20] = np.nan
    plots.save(plots.loss_curve(np.arange(50), loss), tmp_path / "flat.png")


def test_thinning_keeps_means_and_ranges() -> None:
    centre, mean, low, high = thin(np.arange(10_000), np.tile([0.0, 1.0], 5000))
    assert len(centre) == 250
    np.testing.assert_allclose(mean, 0.5)
    assert low.max() == 0 and high.min() == 1
    centre, mean, _, _ = thin(np.arange(5), np.arange(5.0))
    np.testing.assert_array_equal(mean, np.arange(5))


def test_probe_figures(tmp_path: Path) -> None:
    curves = [
        plots.ProbeCurve("k-NN, mean", [3, 6], [0.5, 0.6], [0.01, 0.02], random) for random in (False, True)
    ]
    plots.save(plots.probe_layers(curves, 0.5), tmp_path / "layers.png")
    plots.save(plots.probe_bars(["k-NN", "linear"], [0.7, 0.8], [0.6, 0.7]), tmp_path / "bars.png")
    bars = plots.probe_bars(["k-NN"], [0.7], [0.6], ([0.03], [0.02]), chance=0.5)
    assert "70.0 ± 3.0" in texts(bars)


def test_columns_become_curves_with_spread_and_random_weights() -> None:
    columns = {"probe/knn_cls_layer12": 0.7, "probe/knn_cls_layer3": 0.6, "probe/random_knn_cls_layer3": 0.5}
    columns |= {"probe/knn_cls_layer12_std": 0.1, "probe/knn_cls_layer3_std": 0.2, "loss": 1.0}
    first, second = probe_curves(columns)
    assert (first.layers, first.accuracy, first.std) == ([3, 12], [0.6, 0.7], [0.2, 0.1])
    assert second.random and second.std is None


def test_a_run_has_the_panels_its_columns_allow() -> None:
    steps = np.arange(5.0)
    names = ["step", "loss", "lr", "loss_cls", "images_per_second"]
    columns = dict.fromkeys(names, (steps, steps + 1)) | {"grad_norm": (steps, steps * np.nan)}
    assert [panel.name for panel in plots.run_panels(columns)] == ["loss", "parts", "lr", "images_per_second"]
    assert plots.run_panels({}) == []
    plots.svg(plots.run_report([], "nothing yet"), "empty")


def test_svg_follows_the_page_and_is_the_same_twice() -> None:
    figure = plots.loss_curve(np.arange(9), np.arange(9.0), trivial={"zero": 3.0})
    text = plots.svg(figure, "one")
    assert "currentColor" in text and "var(--grid)" in text and "#1f2328" not in text
    assert ' id="one-' in text and ' id="figure' not in text
    assert ">step</text>" in text
    assert text == plots.svg(plots.loss_curve(np.arange(9), np.arange(9.0), trivial={"zero": 3.0}), "one")


def test_large_photographs_are_written_small(tmp_path: Path) -> None:
    original = images(8, 224, 224)
    figure = plots.reconstruction(original, views(original, leaking=True))
    raw = io.BytesIO()
    figure.savefig(raw, dpi=100)
    path = plots.save(figure, tmp_path / "noise.png")
    assert raw.tell() > 2 * path.stat().st_size  # noise is the worst there is
    assert Image.open(path).convert("RGB").size == Image.open(raw).size


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        plots.save(plots.loss_curve(np.arange(2), np.arange(2.0)), tmp_path / "file" / "x.png")


def test_no_global_state_of_matplotlib_is_touched() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.svg(plots.loss_curve(np.arange(3), np.arange(3.0)), "x")
    assert dict(matplotlib.rcParams) == before


def test_a_confusion_matrix_counts_in_few_cells_and_leaves_out_quiet_classes_of_many() -> None:
    few = plots.confusion_matrix(np.array([[3, 1], [0, 4]]), ["cat", "dog"], "two")
    assert {"3", "1", "4", "cat", "dog"} <= set(texts(few).split()) and "two: 7 of 8 right" in texts(few)
    counts = np.diag(np.full(60, 9))
    counts[7, 50] = counts[50, 7] = 5
    many = texts(plots.confusion_matrix(counts, [f"c{i}" for i in range(60)], "many"))
    assert "the 30 of 60 classes with most mistakes" in many and "c7 " in many and "c50 " in many


def test_the_worst_classes_come_first_and_empty_ones_are_left_out() -> None:
    nan = float("nan")
    rows = [
        plots.ClassBar("good", 10, 0.9, 0.8),
        plots.ClassBar("bad", 1, 0.1, nan, "good"),
        plots.ClassBar("absent", 0, nan, nan),
    ]
    figure = plots.class_table(rows, "classes")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["bad", "good"]
    assert "1 image, taken for good" in texts(figure) and "absent" not in texts(figure)


def test_calibration_and_mistakes_are_drawn_from_what_there_is(tmp_path: Path) -> None:
    bins = np.full((15, 3), np.nan)
    bins[:, 0] = 0
    bins[9] = (12, 0.64, 0.5)
    assert "14.0 %" in texts(plots.calibration(bins, 0.14))
    shown = [images(1, side, side)[0] for side in (8, 300)]
    figure = plots.mistakes(shown, ["cat"] * 2, ["dog 90%"] * 2, ["a.jpg", "deep/b.jpg"], "two")
    assert len(figure.axes) == 2 and texts(figure).count("dog 90%") == 2
    plots.save(figure, tmp_path / "mistakes.png")


def test_starts_are_drawn_with_their_spread_and_a_line_where_guessing_stands() -> None:
    curve = plots.StartCurve("mine", (0.01, 1.0), (0.3, 0.6), (0.05, 0.01))
    figure = plots.starts([("frozen", [curve]), ("fine-tuned", [curve])], 0.25, "title")
    assert len(figure.axes) == 2 and "largest class" in texts(figure)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "100"]


@pytest.mark.parametrize("near", [0, 2])
def test_predictors_beyond_the_chart_of_the_loss_are_named_inside_it(near: int) -> None:
    names = ("zero", "image_mean", "nearest_visible", "patch_mean")
    trivial = {name: 1.5 if place < near else 0.3 for place, name in enumerate(names)}
    figure = plots.loss_curve(np.arange(20), np.linspace(1.8, 1.4, 20), trivial=trivial)
    figure.set_size_inches(5.2, 2.4)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    legend, chart = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert chart.x0 <= legend.x0 and legend.x1 <= chart.x1 and chart.y0 <= legend.y0
    assert "nearest visible 0.3" in texts(figure)
