"""Every golden case, through the adapter of its family, against the published outputs."""

import torch

from .adapters import families, find
from .runner import Case, faults


def check(case: Case, dtype: torch.dtype) -> None:
    family = find(case.name)
    assert family, f"no adapter serves {case.name!r}; served are {', '.join(sorted(families()))}"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        got = family.run(case, dtype)
    finally:
        torch.set_default_dtype(before)
    assert not (wrong := faults(case, got, dtype)), "\n".join(wrong)


def test_matches_the_published_outputs(case: Case) -> None:
    check(case, torch.float64)


def test_matches_in_single_precision(case_in_float32: Case) -> None:
    check(case_in_float32, torch.float32)
