"""Every picture that the project draws: reconstructions, curves, probes, contact sheets, the charts of a run report.

Plain arrays in, matplotlib figures out (`Figure` objects, no global state); `save` writes a PNG, `svg` an inline
fragment whose ink follows the page, light or dark. Images are (H, W, C) floats in 0..1. Colours are those of Okabe and
Ito, which remain distinct for colour-blind eyes; lines differ in dash or marker too. This lies at the bottom of the
house and imports nothing of it but the errors.
"""

from mimkit.plots.charts import (
    Chart,
    ChartPanel,
    Heads,
    HeatMap,
    Tips,
    chart_figure,
    head_dots,
    heat_maps,
    layer_lines,
    panel_of,
    probe_chart,
    run_curves,
    spectra,
)
from mimkit.plots.classify import (
    ClassBar,
    StartCurve,
    calibration,
    class_table,
    confusion_matrix,
    mistakes,
    starts,
)
from mimkit.plots.curves import ProbeCurve, loss_curve, probe_bars, probe_layers
from mimkit.plots.files import save, save_svg, svg, with_tips
from mimkit.plots.images import Views, contact_sheet, feature_maps, reconstruction, reconstruction_grid, rgb
from mimkit.plots.run import Panel, is_loss_part, panel_figure, run_panels, run_report
from mimkit.plots.sheets import Sheet, heat, sheet_figure

__all__ = [
    "Chart",
    "ChartPanel",
    "ClassBar",
    "Heads",
    "HeatMap",
    "Panel",
    "ProbeCurve",
    "Sheet",
    "StartCurve",
    "Tips",
    "Views",
    "calibration",
    "chart_figure",
    "class_table",
    "confusion_matrix",
    "contact_sheet",
    "feature_maps",
    "head_dots",
    "heat",
    "heat_maps",
    "is_loss_part",
    "layer_lines",
    "loss_curve",
    "mistakes",
    "panel_figure",
    "panel_of",
    "probe_bars",
    "probe_chart",
    "probe_layers",
    "reconstruction",
    "reconstruction_grid",
    "rgb",
    "run_curves",
    "run_panels",
    "run_report",
    "save",
    "save_svg",
    "sheet_figure",
    "spectra",
    "starts",
    "svg",
    "with_tips",
]
