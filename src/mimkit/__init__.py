"""mimkit: masked image modelling from a folder of images to a backbone that can be judged and used.

Every verb of the command line is a function here (`mimkit.pretrain`, `mimkit.reconstruct`, ...). Importing the
package is cheap: torch and its friends are loaded by the first function that needs them.
"""

from typing import Any

from mimkit.version import __version__

VERBS = (
    "analyze",
    "compare",
    "convert",
    "data_check",
    "data_prepare",
    "data_show",
    "data_stats",
    "demo",
    "embed",
    "evaluate",
    "feature_maps",
    "export",
    "finetune",
    "launch",
    "load",
    "models",
    "plan",
    "predict",
    "pretrain",
    "probe",
    "reconstruct",
    "report",
)

__all__ = ["VERBS", "__version__"]


def __getattr__(name: str) -> Any:
    """The functions of `mimkit.api` as attributes of the package, loaded on first use (PEP 562)."""
    if name in VERBS:
        import importlib

        return getattr(importlib.import_module("mimkit.api"), name)
    raise AttributeError(f"module 'mimkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *VERBS])
