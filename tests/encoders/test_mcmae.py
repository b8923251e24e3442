"""MCMAE's encoder: visible units alone against whole maps, what it never looks at, its table of sizes, ablations."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mimkit import encoders
from mimkit.analysis import cost
from mimkit.encoders.mcmae import MCMAEEncoder
from mimkit.errors import UserError
from mimkit.masks import Mask, RandomMasker, collate, from_hidden
from mimkit.methods.mcmae import MCMAE

UNIT = (16, 16)
PAPER = {  # millions of parameters, measured on the published classes (table 7 rounds and errs for H)
    "mcmae_small": 21.943,
    "mcmae_base": 84.606,
    "mcmae_base_star": 88.019,
    "mcmae_large": 321.952,
    "mcmae_huge": 679.458,
}


def encoder_of(dtype: torch.dtype = torch.float64, **options: Any) -> MCMAEEncoder:
    torch.manual_seed(0)
    encoder = MCMAEEncoder((6, 8, 12), (2, 1, 2), 2, (2, 2, 2), size=(48, 64), **options).to(dtype)
    for parameter in encoder.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return encoder


def mask_of(grid: tuple[int, int], keep: int, batch: int = 2, seed: int = 0) -> Mask:
    rng = np.random.default_rng(seed)
    hidden = torch.ones(batch, grid[0] * grid[1], dtype=torch.bool)
    for row in hidden:
        row[torch.from_numpy(rng.permutation(row.numel())[:keep])] = False
    return from_hidden(hidden.view(batch, *grid), UNIT)


def both(encoder: MCMAEEncoder, images: Tensor, mask: Mask, **options: Any) -> tuple[Any, Any]:
    """(visible units alone, whole maps)."""
    found = []
    for share in (1.0, 0.0):
        encoder.pack_up_to = share
        found.append(encoder(images, mask, **options))
    return found[0], found[1]


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(5, 70), st.integers(5, 70)),
    share=st.floats(0, 1),
    kernel=st.sampled_from([5, 7, 9]),
    seed=st.integers(0, 99),
)
def test_visible_units_alone_give_what_whole_maps_give(
    size: tuple[int, int], share: float, kernel: int, seed: int
) -> None:
    """Any size, padded where 16 does not divide it; from one visible unit to all."""
    encoder = encoder_of(torch.float32, kernel=kernel).eval()
    grid = (-(-size[0] // 16), -(-size[1] // 16))
    mask = mask_of(grid, max(1, round(share * grid[0] * grid[1])), seed=seed)
    packed, whole = both(encoder, torch.randn(2, 3, *size), mask)
    for x, y in zip(packed.levels, whole.levels, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(keep=st.integers(1, 11), kernel=st.sampled_from([5, 7, 9]))
def test_both_ways_agree_in_bf16_within_its_rounding(keep: int, kernel: int) -> None:
    encoder = encoder_of(torch.float32, kernel=kernel).eval()
    images, mask = torch.randn(2, 3, 48, 64), mask_of((3, 4), keep)
    exact, _ = both(encoder, images, mask)
    with torch.autocast("cpu", torch.bfloat16):
        packed, whole = both(encoder, images, mask)
    for x, y, z in zip(packed.levels, whole.levels, exact.levels, strict=True):
        off, usual = ((part.float() - z).square().mean().sqrt() for part in (x, y))
        assert off <= 1.5 * usual and usual <= 0.02 * z.square().mean().sqrt()


@settings(max_examples=10, deadline=None)
@given(keep=st.integers(1, 11), kernel=st.sampled_from([3, 5, 9]), packed=st.booleans())
def test_latents_do_not_depend_on_hidden_pixels(keep: int, kernel: int, packed: bool) -> None:
    encoder = encoder_of(kernel=kernel).eval()
    encoder.pack_up_to = float(packed)
    mask, images = mask_of((3, 4), keep), torch.randn(2, 3, 48, 64, dtype=torch.float64).requires_grad_()
    first = encoder(images, mask)
    sum(x.square().sum() for x in first.levels).backward()
    hidden = mask.at((1, 1))[:, None].expand_as(images)
    assert not images.grad[hidden].any() and (images.grad[~hidden] != 0).all()
    other = encoder(torch.where(hidden, 1e3 * torch.randn_like(images), images), mask)
    assert all(torch.equal(x, y) for x, y in zip(first.levels, other.levels, strict=True))


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_of_the_weights_are_the_same_both_ways(packed: bool) -> None:
    encoder, mask = encoder_of(), mask_of((3, 4), 5)
    images = torch.randn(2, 3, 48, 64, dtype=torch.float64)
    found = []
    for share in (float(packed), 0.0):
        encoder.zero_grad()
        encoder.pack_up_to = share
        sum(x.square().sum() for x in encoder(images, mask).levels).backward()
        found.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_where_little_is_hidden_whole_maps_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of().eval()
    asked = []
    monkeypatch.setattr(
        "mimkit.encoders.mcmae_view.window_rows",
        lambda visible, *rest: asked.append(visible.shape[1]) or _windows(visible, *rest),
    )
    for keep in (8, 9):  # of 12; 0.7 is 8.4
        encoder(torch.randn(2, 3, 48, 64, dtype=torch.float64), mask_of((3, 4), keep))
    assert set(asked) == {8}


def _windows(*arguments: Any) -> Tensor:
    from mimkit.ops.masked_conv import window_rows

    return window_rows(*arguments)


@pytest.mark.parametrize("name", PAPER)
def test_sizes_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        encoder = encoders.build(name)
    norm = 2 * encoder.levels[-1].channels  # which the method owns here
    assert cost.parameters(encoder) + norm == pytest.approx(1e6 * PAPER[name], abs=501)


def flops(masking: str = "units", kernel: int = 5, packed: bool = False, multi_scale: bool = False) -> float:
    """Multiply-adds in millions of the pre-training model of the base size forward, one image of 224 px, ratio 0.75."""
    with torch.device("meta"):
        encoder = encoders.build("mcmae_base", masking=masking, kernel=kernel)
        model = MCMAE(encoder, RandomMasker(0.75, encoder.unit), multi_scale=multi_scale)
    encoder.pack_up_to = float(packed)
    grid = tuple(224 // cell for cell in encoder.unit)
    mask = model.masker(np.random.default_rng(0), grid).to(torch.device("meta"))
    images = torch.zeros(1, 3, 224, 224, device="meta")
    with torch.no_grad():
        return cost.flops(lambda: model.predict_all(images, mask)) / 2e6


def test_operations_are_those_of_the_sheet_and_of_table_5() -> None:
    """The ratios of table 5 count whole maps; decoder included, every token answered, as published."""
    whole = flops()
    fused = 847.8  # of all units, as published; here the visible quarter alone
    assert flops(multi_scale=True) + 0.75 * fused == pytest.approx(17218.22, abs=0.5)
    assert flops("tokens") / whole == pytest.approx(1.740, abs=1e-3)
    assert flops("leaky") / whole == pytest.approx(1.0, abs=1e-6)
    for kernel, ratio in ((3, 0.9978), (7, 1.0032), (9, 1.0076)):
        assert flops(kernel=kernel) / whole == pytest.approx(ratio, abs=1e-4)


def test_visible_units_alone_cost_half_of_the_encoder() -> None:
    assert flops(packed=True, multi_scale=True) == pytest.approx(11204, abs=2)


@pytest.mark.parametrize("masking", ["tokens", "leaky"])
def test_ablations_differ_in_what_they_look_at(masking: str) -> None:
    """Leaky convolutions see hidden pixels; a mask on tokens hides them from every convolution but keeps all units."""
    encoder = encoder_of(masking=masking).eval()
    cell = encoder.unit
    grid = (48 // cell[0], 64 // cell[1])
    mask = collate([RandomMasker(0.75, cell)(np.random.default_rng(i), grid) for i in range(2)])
    images = torch.randn(2, 3, 48, 64, dtype=torch.float64).requires_grad_()
    found = encoder(images, mask)
    found.levels[0].square().sum().backward()
    hidden = mask.at((1, 1))[:, None].expand_as(images)
    if masking == "leaky":
        assert found.mask is not None and images.grad[hidden].any()
    else:
        assert found.mask is None and found.levels[-1].shape == (2, 3, 4, 12)


def test_layers_can_be_all_blocks() -> None:
    encoder = encoder_of(layering="blocks").eval()
    assert encoder.depth == 5
    depth = encoder.depth_of
    assert [
        depth(f"{name}.weight") for name in ("patch_embed1.proj", "blocks1.0.conv1", "blocks1.1.attn")
    ] == [
        0,
        1,
        2,
    ]
    assert (depth("patch_embed2.proj.weight"), depth("blocks2.0.norm1.bias")) == (3, 3)
    assert (depth("pos_embed"), depth("patch_embed4.bias"), depth("blocks3.1.norm1.bias")) == (4, 4, 5)
    images = torch.randn(1, 3, 48, 64, dtype=torch.float64)
    found = encoder(images, layers=range(1, 6)).layers
    assert [x.levels[0].shape[1:] for x in found.values()] == [
        (12, 16, 6),
        (12, 16, 6),
        (6, 8, 8),
        (3, 4, 12),
        (3, 4, 12),
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kernel": 4}, "kernel of 4 has no middle.*odd one: 3, 5, 7 or 9"),
        ({"masking": "some"}, "Unknown masking 'some'; known are 'units', 'tokens' and 'leaky'"),
        ({"layering": "some"}, "Unknown layering 'some'; known are 'published' and 'blocks'"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        encoder_of(**options)
