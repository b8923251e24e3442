"""Backbones by name. A new one is a file here, a row in this table and rules in `zoo`."""

import importlib
from typing import Any

from mimkit.encoders.base import AttentionSite, Encoder, Features, Level
from mimkit.errors import UserError, nearest

__all__ = ["AttentionSite", "Encoder", "Features", "Level", "build", "names"]

FAMILIES = {
    "vit_tiny": "mimkit.encoders.vit",
    "vit_small": "mimkit.encoders.vit",
    "vit_base": "mimkit.encoders.vit",
    "vit_large": "mimkit.encoders.vit",
    "vit_huge": "mimkit.encoders.vit",
    "mcmae_tiny": "mimkit.encoders.mcmae",
    "mcmae_small": "mimkit.encoders.mcmae",
    "mcmae_base": "mimkit.encoders.mcmae",
    "mcmae_base_star": "mimkit.encoders.mcmae",
    "mcmae_large": "mimkit.encoders.mcmae",
    "mcmae_huge": "mimkit.encoders.mcmae",
}


def names() -> list[str]:
    """The encoders that mimkit has of its own."""
    return list(FAMILIES)


def paper(name: str) -> str:
    """Where an encoder of mimkit's own comes from."""
    return importlib.import_module(FAMILIES[name]).VARIANTS[name].paper


def build(name: str, **options: Any) -> Encoder:
    """The encoder `name` (or `timm:NAME`, or `vit:` and `mcmae:` with numbers of one's own) with random weights;
    `options` are those of the family's own `build`.

    Raises UserError for an unknown name.
    """
    family, _, rest = name.partition(":")
    if family == "timm" and rest:
        return importlib.import_module("mimkit.encoders.timm").build(rest, **options)
    if family in ("vit", "mcmae") and rest:
        return importlib.import_module(f"mimkit.encoders.{family}").build(name, **options)
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(
            f"Unknown encoder {name!r}; known are {known} and timm:NAME.{nearest(name, FAMILIES)}"
        )
    return importlib.import_module(FAMILIES[name]).build(name, **options)
