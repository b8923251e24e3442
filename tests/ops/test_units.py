"""The unit layout: every operation has its inverse, on two axes and three, and shapes are what they say."""

import pytest
import torch
import torch.nn.functional as F
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, jaxtyped
from torch import Tensor

from mimkit.errors import UserError
from mimkit.ops import units

few = settings(max_examples=40, deadline=None)
axes = st.integers(2, 3).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, 4), min_size=n, max_size=n),
        st.lists(st.integers(1, 3), min_size=n, max_size=n),
    )
)


@jaxtyped(typechecker=beartype)
def patches_of(images: Float[Tensor, "b c h w"], patch: tuple[int, int]) -> Float[Tensor, "b n values"]:  # noqa: F722
    return units.patchify(images, patch)


@few
@given(axes)
def test_joining_what_was_cut_gives_the_map_back(sizes: tuple[list[int], list[int]]) -> None:
    grid, s = sizes
    x = torch.randn(2, *(g * side for g, side in zip(grid, s, strict=True)), 5)
    cut = units.cut(x, s)
    assert cut.shape == (2, torch.tensor(grid).prod(), *s, 5)
    assert torch.equal(units.join(cut, grid), x)


@few
@given(st.integers(1, 3), st.integers(1, 20), st.data())
def test_putting_what_was_taken_restores_it_with_zeros_elsewhere(
    batch: int, n: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(0, n))
    index = torch.stack([torch.randperm(n)[:keep].sort().values for _ in range(batch)])
    x = torch.randn(batch, n, 2, 3)
    taken = units.take(x, index)
    assert taken.shape == (batch, keep, 2, 3)
    back = units.put(taken, index, n)
    hit = torch.zeros(batch, n, dtype=torch.bool).scatter(1, index, True)
    assert torch.equal(back[hit], x[hit]) and not back[~hit].any()
    assert torch.equal(units.take(back, index), taken)


@few
@given(st.integers(1, 3), st.integers(1, 4), *[st.integers(1, 4)] * 4)
def test_unpatchify_is_the_inverse_of_patchify(
    b: int, c: int, rows: int, columns: int, ph: int, pw: int
) -> None:
    images = torch.randn(b, c, rows * ph, columns * pw)
    patches = patches_of(images, (ph, pw))
    assert patches.shape == (b, rows * columns, ph * pw * c)
    assert torch.equal(units.unpatchify(patches, (rows, columns), (ph, pw)), images)


def test_pixels_of_a_patch_run_by_row_column_and_channel() -> None:
    image = torch.arange(2 * 4 * 6).view(1, 2, 4, 6)
    second = units.patchify(image, (2, 3))[0, 1]  # rows 0..1, columns 3..5
    assert second.tolist() == [image[0, c, y, x].item() for y in (0, 1) for x in (3, 4, 5) for c in (0, 1)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_chosen_patches_are_those_of_the_whole_image(layout: torch.memory_format) -> None:
    images = torch.randn(2, 3, 12, 20).to(memory_format=layout)
    index = torch.tensor([[0, 7, 3], [14, 1, 1]])
    assert torch.equal(
        units.patchify(images, (4, 4), index), units.take(units.patchify(images, (4, 4)), index)
    )


def test_an_image_that_the_patch_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="30 x 32 pixels are not a whole number of 4 x 4 patches"):
        units.patchify(torch.zeros(1, 3, 30, 32), (4, 4))


@pytest.mark.parametrize("width", [2, 200])  # fewer values in the kernel than in the map, and more
@pytest.mark.parametrize(("s", "side"), [(4, 4), (2, 4), (2, 2)])
def test_a_convolution_that_tiles_is_that_convolution_in_either_layout(width: int, s: int, side: int) -> None:
    torch.manual_seed(0)
    tiled = units.Tiled(6, width, s).double()
    x = torch.randn(1, 3, side, 2 * side, 6, dtype=torch.float64, requires_grad=True)
    assert (x.numel() < tiled.weight.numel()) == (width == 200)
    y = tiled(x)  # (B, K, h, w, C)
    maps = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), tiled.weight, tiled.bias, stride=s)
    wanted = maps.permute(0, 2, 3, 1).view_as(y)
    torch.testing.assert_close(y, wanted)
    grads = [torch.autograd.grad(z.square().sum(), [x, *tiled.parameters()]) for z in (y, wanted)]
    torch.testing.assert_close(*grads)
