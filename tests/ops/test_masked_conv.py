"""Depth-wise convolution of visible units against the convolution of the masked map, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mimkit.ops import units
from mimkit.ops.masked_conv import depthwise, window_rows

CHANNELS = 3


def case(grid: tuple[int, int], s: tuple[int, int], keep: int, k: int) -> tuple[Tensor, ...]:
    """(visible (2, K), packed (2, K, *s, C), kernel, bias), float64."""
    torch.manual_seed(0)
    n = grid[0] * grid[1]
    visible = torch.stack([torch.randperm(n)[:keep].sort().values for _ in range(2)])
    make = {"dtype": torch.float64, "requires_grad": True}
    return (
        visible,
        torch.randn(2, keep, *s, CHANNELS, **make),
        torch.randn(CHANNELS, 1, k, k, **make),
        torch.randn(CHANNELS, **make),
    )


def on_the_map(
    visible: Tensor, x: Tensor, kernel: Tensor, bias: Tensor, grid: tuple[int, int], s: tuple[int, int]
) -> Tensor:
    whole = units.join(units.put(x, visible, grid[0] * grid[1]), grid)  # (B, h, w, C), hidden ones zero
    return units.take(units.cut(depthwise(whole[:, None], kernel, bias)[:, 0], s), visible)


@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    s=st.sampled_from([(4, 4), (2, 2), (1, 1), (2, 4)]),
    share=st.floats(0.01, 1),
    k=st.sampled_from([1, 3, 5, 7, 9]),
)
def test_units_give_what_the_masked_map_gives(
    grid: tuple[int, int], s: tuple[int, int], share: float, k: int
) -> None:
    """Kernels that reach past the next unit too (9 x 9 over units of 2)."""
    keep = max(1, round(share * grid[0] * grid[1]))
    visible, x, kernel, bias = case(grid, s, keep, k)
    windows = window_rows(visible, grid, s, (k, k))
    want = on_the_map(visible, x, kernel, bias, grid, s)
    got = depthwise(x, kernel, bias, windows)
    torch.testing.assert_close(got, want)
    direction = torch.randn_like(want)
    for a, b in zip(
        torch.autograd.grad(got, (x, kernel, bias), direction),
        torch.autograd.grad(want, (x, kernel, bias), direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_only_the_gradients_that_are_asked_for_are_computed() -> None:
    visible, x, kernel, bias = case((2, 3), (2, 2), 4, 5)
    windows = window_rows(visible, (2, 3), (2, 2), (5, 5))
    frozen = depthwise(x, kernel.detach(), None, windows)
    (gradient,) = torch.autograd.grad(frozen.sum(), x)
    (whole,) = torch.autograd.grad(depthwise(x, kernel, bias, windows).sum(), x)
    torch.testing.assert_close(gradient, whole)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_lower_precision_is_kept_and_stays_close(precision: torch.dtype) -> None:
    visible, x, kernel, bias = case((4, 4), (4, 4), 5, 5)
    windows = window_rows(visible, (4, 4), (4, 4), (5, 5))
    rough = depthwise(x.to(precision), kernel.float(), bias.float(), windows)
    assert rough.dtype == precision
    bound = 1e-5 if precision == torch.float32 else 0.15  # of values around 5
    assert (rough.double() - depthwise(x, kernel, bias, windows)).abs().max() < bound


def test_what_lies_outside_the_image_or_is_hidden_is_no_row() -> None:
    windows = window_rows(torch.tensor([[0]]), (1, 2), (2, 2), (3, 3))
    assert windows.tolist() == [[[4, 4, 4, 4], [4, 0, 1, 4], [4, 2, 3, 4], [4, 4, 4, 4]]]
