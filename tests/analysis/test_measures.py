"""Attention distance, entropy and divergence on arrays: analytic values, and what must not change them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimkit.analysis import geometry, measures

grids = st.tuples(st.integers(1, 6), st.integers(1, 7))


def attention(heads: int, n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(2, heads, n, n, generator=generator, dtype=torch.float64)).softmax(-1)


@given(grids, st.sampled_from([(4, 4), (16, 16), (8, 2)]))
@settings(max_examples=30, deadline=None)
def test_uniform_attention_has_the_closed_form(grid: tuple[int, int], stride: tuple[int, int]) -> None:
    n = math.prod(grid)
    p = torch.full((1, 1, n, n), 1 / n, dtype=torch.float64)
    apart = geometry.distances(grid, stride)
    mean = float(measures.attention_distance(p, apart).mean())
    assert mean == pytest.approx(geometry.uniform_distance(grid, stride))
    assert geometry.whole(grid, stride).uniform() == pytest.approx((mean, math.log(n)))
    assert float(measures.entropy(p).mean()) == pytest.approx(math.log(n))


@pytest.mark.parametrize(
    ("side", "stride", "pixels"), [(14, 16, 116.5), (7, 32, 115.5), (12, 16, 99.8), (16, 16, 133.2)]
)
def test_the_ceiling_of_square_grids_is_the_known_one(side: int, stride: int, pixels: float) -> None:
    assert geometry.uniform_distance((side, side), (stride, stride)) == pytest.approx(pixels, abs=0.05)


def test_attention_to_itself_is_at_no_distance_and_to_one_cell_at_the_mean_distance_to_it() -> None:
    apart = geometry.distances((3, 4), (16, 16))
    eye = torch.eye(12, dtype=torch.float64)[None, None]
    assert measures.attention_distance(eye, apart).abs().max() == 0
    assert measures.entropy(eye).abs().max() == 0
    to_five = eye[:, :, 5:6].expand(-1, -1, 12, -1)
    assert float(measures.attention_distance(to_five, apart).mean()) == pytest.approx(float(apart[5].mean()))
    assert float(measures.entropy(to_five).max()) == 0


@given(st.integers(2, 5), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_identical_heads_do_not_differ(heads: int, seed: int) -> None:
    p = attention(1, 6, seed).expand(-1, heads, -1, -1)
    assert measures.kl_matrix(p).abs().max() < 1e-12
    assert measures.js_matrix(p).abs().max() < 1e-12


def test_disjoint_heads_differ_by_the_floor_of_the_logarithm_and_by_ln_2() -> None:
    eye = torch.eye(6, dtype=torch.float64)
    p = torch.stack([eye, eye.roll(1, 0)])[None]
    assert float(measures.kl_matrix(p)[0, 1]) == pytest.approx(math.log(1e8))
    assert float(measures.js_matrix(p)[0, 1]) == pytest.approx(math.log(2))
    against_uniform = measures.kl_matrix(torch.stack([eye, torch.full_like(eye, 1 / 6)])[None])
    assert float(against_uniform[0, 1]) == pytest.approx(math.log(6))


def test_permuting_heads_permutes_the_dots_and_leaves_the_layer() -> None:
    p, order = attention(4, 9), torch.tensor([2, 0, 3, 1])
    dots = measures.per_head(measures.kl_matrix(p))
    torch.testing.assert_close(measures.per_head(measures.kl_matrix(p[:, order])), dots[order])


def test_transposing_the_image_changes_nothing_and_larger_patches_scale_distances_alone() -> None:
    p = attention(2, 9)
    turn = torch.arange(9).view(3, 3).T.flatten()
    turned = p[:, :, turn][..., turn]
    apart = geometry.distances((3, 3), (16, 16))
    distance = measures.attention_distance(p, apart).mean((0, 2))
    torch.testing.assert_close(measures.attention_distance(turned, apart).mean((0, 2)), distance)
    doubled = measures.attention_distance(p, geometry.distances((3, 3), (32, 32))).mean((0, 2))
    torch.testing.assert_close(doubled, 2 * distance)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_entropy_and_distance_stay_below_their_bounds(seed: int) -> None:
    p = attention(2, 12, seed)
    apart = geometry.distances((3, 4), (16, 16))
    assert measures.entropy(p).max() <= math.log(12) + 1e-12
    assert measures.attention_distance(p, apart).max() <= apart.max()
    assert measures.js_matrix(p).max() <= math.log(2)
    nmi = measures.attention_nmi(p)
    assert nmi.min() >= 0 and nmi.max() <= 1 + 1e-9


def test_mutual_information_is_one_for_a_permutation_and_zero_for_equal_rows() -> None:
    eye = torch.eye(8, dtype=torch.float64).roll(3, 0)[None, None]
    assert float(measures.attention_nmi(eye)) == pytest.approx(1, abs=1e-5)
    assert float(measures.attention_nmi(attention(1, 8)[:1, :, :1].expand(-1, -1, 8, -1))) == pytest.approx(
        0, abs=1e-5
    )


def test_windows_have_true_distances_and_the_border_is_cut() -> None:
    where = geometry.windowed((4, 4), (8, 8), (2, 2), (1, 1))
    assert where.windows == 4 and where.keys == 4
    assert where.index[3].tolist() == [15, 12, 3, 0]  # the corners of the image meet in the last window
    assert float(where.distance[3, 0, 3]) == pytest.approx(8 * 3 * math.sqrt(2))
    assert len(set(where.region[3].tolist())) == 4
    plain = geometry.windowed((4, 4), (8, 8), (2, 2))
    assert plain.uniform()[0] == pytest.approx(geometry.uniform_distance((2, 2), (8, 8)))
    assert where.uniform()[0] < plain.uniform()[0]  # the zigzag of shifted layers


def test_padding_is_no_place_in_the_image() -> None:
    where = geometry.windowed((3, 5), (4, 4), (2, 4))
    assert sorted(where.index[where.inside].tolist()) == list(range(15))
    assert where.padded and not geometry.whole((3, 5), (4, 4)).padded


def test_a_single_head_has_nothing_to_differ_from() -> None:
    assert torch.isnan(measures.per_head(torch.zeros(1, 1))).all()


def test_rows_of_half_precision_are_measured_in_single() -> None:
    scores = torch.randn(1, 2, 9, 9).bfloat16()
    meters = [measures.Meter(geometry.whole((3, 3), (1, 1))) for _ in range(2)]
    meters[0].add([scores])
    meters[1].add([scores.float()])
    torch.testing.assert_close(meters[0].mean("entropy"), meters[1].mean("entropy"))


def test_prefix_tokens_may_be_counted_in_entropy_and_divergence() -> None:
    scores = torch.zeros(1, 2, 10, 10, dtype=torch.float64)
    meter = measures.Meter(geometry.whole((3, 3), (1, 1)), prefix=1, include_prefix=True)
    meter.add([scores])
    assert meter.mean("entropy").tolist() == pytest.approx([math.log(10)] * 2)
    assert meter.mean("distance").tolist() == pytest.approx([geometry.uniform_distance((3, 3))] * 2)


def test_batches_leave_no_tensors_of_their_own_behind() -> None:
    """Small ones that stay, among large ones that come and go, made the heap grow with the number of images."""
    meter = measures.Meter(geometry.whole((3, 3), (1, 1)))
    meter.add([torch.randn(2, 4, 9, 9)])
    kept = {name: total.data_ptr() for name, total in meter.sums.items()}
    meter.add([torch.randn(3, 4, 9, 9)])
    assert {name: total.data_ptr() for name, total in meter.sums.items()} == kept
    assert {len(values) for values in meter.images.values()} == {5}
    assert all(type(value) is float for values in meter.images.values() for value in values)
