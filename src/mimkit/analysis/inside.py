"""What `mimkit analyze` found out about some models on the same images: plain data, ready for tables, figures, a page.

An analysis that does not apply to a model (attention of a convolutional network, probes without labels) is None there,
and `notes` says so in words.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mimkit.analysis.attention import AttentionStatistics
from mimkit.analysis.frames import Frame, frame, stack
from mimkit.analysis.kernels import KernelStatistics
from mimkit.analysis.probe import ProbeTable
from mimkit.analysis.similarity import CKA
from mimkit.analysis.spectrum import LayerStatistics
from mimkit.analysis.verdicts import Finding
from mimkit.plots import Sheet
from mimkit.plots.curves import Series


@dataclass(frozen=True)
class Inspection:
    """One model. size: (h, w) of its images. about: what it is, in words."""

    label: str
    about: str
    size: tuple[int, int]
    parameters: int
    attention: AttentionStatistics | None = None
    kernels: KernelStatistics | None = None
    cka: CKA | None = None
    layers: LayerStatistics | None = None
    probes: ProbeTable | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """Some models on the same images. cross: CKA between the first model and each other one.

    data: what the images are. settings: (what, how) in words. notes: what a reader must know of all models together.
    sheets: pictures. viewer: attention maps for the page (`viewer.pack`). runs: run -> metric -> (steps, values).
    """

    models: tuple[Inspection, ...]
    data: str
    images: int
    settings: tuple[tuple[str, str], ...] = ()
    cross: tuple[CKA, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    viewer: list[dict[str, Any]] = field(default_factory=list)
    runs: dict[str, dict[str, Series]] = field(default_factory=dict)

    def to_frame(self) -> Frame:
        """Every number: columns model, layer, head, metric, value, and those that some analyses add."""
        return stack(self._frames())

    def _frames(self) -> Iterator[Frame]:
        for model in self.models:
            for found in (model.attention, model.kernels, model.layers, model.cka):
                if found is not None:
                    yield found.to_frame()
            if model.probes is not None:
                yield probe_frame(model.label, model.probes)
        yield from (found.to_frame() for found in self.cross)


def probe_frame(model: str, table: ProbeTable) -> Frame:
    """A row a probe of the trained weights: `knn_mean`, `linear_cls`, shares of right answers."""
    rows = [
        (model, row.layer, None, f"{row.classifier}_{row.pooling}", row.accuracy)
        for row in table.rows
        if row.weights == "trained"
    ]
    return frame(rows)
