"""Looking inside: what a model attends to, how alike its layers are, how many directions its features use.

Functions are loaded on first use (PEP 562): `mimkit.analysis.attention_statistics(model, loader)`. Each takes a
model (of mimkit, timm or transformers) and a loader of normalised images, and returns a small dataclass whose
`to_frame()` is a long table.
"""

from typing import Any

FUNCTIONS = {
    "attention_maps": "mimkit.analysis.maps",
    "attention_statistics": "mimkit.analysis.attention",
    "cka": "mimkit.analysis.similarity",
    "compare": "mimkit.analysis.verdicts",
    "dense_features": "mimkit.analysis.layers",
    "kernel_statistics": "mimkit.analysis.kernels",
    "layer_statistics": "mimkit.analysis.spectrum",
    "mask_advice": "mimkit.analysis.verdicts",
    "merge_kernels": "mimkit.analysis.kernels",
    "pca_rgb": "mimkit.analysis.pca",
    "rollout": "mimkit.analysis.flow",
    "sentences": "mimkit.analysis.verdicts",
}

__all__ = ["FUNCTIONS"]


def __getattr__(name: str) -> Any:
    if name in FUNCTIONS:
        import importlib

        return getattr(importlib.import_module(FUNCTIONS[name]), name)
    raise AttributeError(f"module 'mimkit.analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *FUNCTIONS])
