"""mimkit: masked image modelling from a folder of images to a backbone that can be judged and used.

Every verb of the command line is a function here (`mimkit.pretrain`, `mimkit.reconstruct`, ...). Importing the
package is cheap: torch and its friends are loaded by the first function that needs them.
"""

from typing import Any

from mimkit.version import __version__

__all__ = ["__version__", "api"]


def __getattr__(name: str) -> Any:
    """Give the public functions of `mimkit.api` as attributes of the package, loaded on first use (PEP 562)."""
    import importlib

    if name == "api":
        return importlib.import_module("mimkit.api")
    verbs = importlib.import_module("mimkit.api")
    if not name.startswith("_") and name in verbs.__all__:
        return getattr(verbs, name)
    raise AttributeError(f"module 'mimkit' has no attribute {name!r}")
