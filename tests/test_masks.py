"""Maskers: how many cells they hide, that they are a function of the generator alone, and what padding does to them."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mimkit.errors import UserError
from mimkit.masks import (
    BlockMasker,
    GridMasker,
    Mask,
    Masker,
    RandomMasker,
    at_ratio,
    avg_distance,
    build_masker,
    collate,
    from_hidden,
    hide_blocks,
    indices,
    kept,
    mean_avg_distance,
    visible_count,
)

UNIT = (16, 16)
grids = st.tuples(st.integers(1, 16), st.integers(1, 16))
ratios = st.floats(0.05, 0.95)
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=60, deadline=None)


def masker_of(kind: str, ratio: float, decode: float = 1.0) -> Masker:
    return build_masker(kind, ratio, UNIT, decode)


def draw(masker: Masker, seed: int, grid: tuple[int, ...], valid: np.ndarray | None = None) -> Mask:
    return masker(np.random.default_rng(seed), grid, valid)


def possible(grid: tuple[int, int], ratio: float) -> bool:
    return 0 < kept(grid[0] * grid[1], ratio) < grid[0] * grid[1]


def assert_sound(mask: Mask, grid: tuple[int, ...]) -> None:
    assert mask.grid == grid and mask.unit == UNIT and mask.hidden.dtype == torch.bool
    assert mask.visible.dtype == torch.int64 and torch.equal(mask.visible, indices(~mask.hidden))
    assert (mask.visible.diff() > 0).all() and 0 < mask.visible.shape[1] < mask.hidden[0].numel()
    assert (mask.decoded.diff() > 0).all()
    assert mask.hidden.flatten(1).gather(1, mask.decoded).all()


@few
@given(st.sampled_from(["random", "block"]), grids, ratios, seeds)
def test_exactly_the_truncated_count_stays_visible(
    kind: str, grid: tuple[int, int], ratio: float, seed: int
) -> None:
    assume(possible(grid, ratio))
    mask = draw(masker_of(kind, ratio), seed, grid)
    assert_sound(mask, grid)
    assert mask.visible.shape == (1, int(grid[0] * grid[1] * (1 - ratio)))


@few
@given(st.sampled_from(["random", "block", "grid"]), seeds, ratios, st.floats(0.1, 1.0))
def test_a_mask_is_a_function_of_the_generator_alone(
    kind: str, seed: int, ratio: float, decode: float
) -> None:
    first, second = (draw(masker_of(kind, ratio, decode), seed, (12, 9)) for _ in range(2))
    assert torch.equal(first.hidden, second.hidden) and torch.equal(first.decoded, second.decoded)


@pytest.mark.parametrize("kind", ["random", "block"])
def test_different_samples_get_different_masks(kind: str) -> None:
    drawn = [draw(masker_of(kind, 0.75), seed, (14, 14)).hidden for seed in range(20)]
    assert len({mask.numpy().tobytes() for mask in drawn}) == 20


@few
@given(st.sampled_from(["random", "block"]), grids, grids, ratios, seeds)
def test_padding_is_hidden_and_never_predicted(
    kind: str, inner: tuple[int, int], extra: tuple[int, int], ratio: float, seed: int
) -> None:
    assume(possible(inner, ratio))
    grid = (inner[0] + extra[0], inner[1] + extra[1])
    valid = np.zeros(grid, dtype=bool)
    valid[: inner[0], : inner[1]] = True
    mask = draw(masker_of(kind, ratio), seed, grid, valid)
    assert_sound(mask, grid)
    padding = torch.from_numpy(~valid)
    assert mask.hidden[0][padding].all()
    assert not padding.flatten()[mask.decoded[0]].any()
    assert mask.visible.shape[1] == visible_count(inner[0] * inner[1], ratio)
    assert mask.decoded.shape[1] == inner[0] * inner[1] - mask.visible.shape[1]


@few
@given(st.sampled_from(["random", "block", "grid"]), seeds, st.floats(0.01, 1.0))
def test_a_share_of_the_hidden_cells_is_decoded(kind: str, seed: int, decode: float) -> None:
    mask = draw(masker_of(kind, 0.6, decode), seed, (8, 10))
    hidden = int(mask.hidden.sum())
    assert_sound(mask, (8, 10))
    assert mask.decoded.shape[1] == max(1, round(decode * hidden))
    assert (mask.predict is None) == (decode == 1)


@pytest.mark.parametrize(
    ("cells", "ratio", "keep"),
    [
        (10, 0.8, 1),
        (20, 0.8, 3),
        (25, 0.8, 4),
        (100, 0.9, 9),
        (196, 0.75, 49),
        (196, 0.6, 78),
        (196, 0.9, 19),
    ],
)
def test_counts_are_truncated_in_double_precision_as_published(cells: int, ratio: float, keep: int) -> None:
    assert visible_count(cells, ratio) == keep


@pytest.mark.parametrize(
    ("cells", "ratio", "what"), [(10, 0.9, "visible"), (4, 0.8, "visible"), (9, 0.0, "hidden")]
)
def test_a_ratio_that_leaves_nothing_to_see_or_to_predict_is_refused(
    cells: int, ratio: float, what: str
) -> None:
    with pytest.raises(UserError, match=f"nothing {what} of {cells} cells"):
        visible_count(cells, ratio)


@given(st.integers(2, 3000))
def test_the_ratio_that_the_refusal_names_works(cells: int) -> None:
    with pytest.raises(UserError) as caught:
        visible_count(cells, 1.0)
    assert visible_count(cells, float(str(caught.value).rstrip(".").split()[-1])) >= 1


def share_of_hidden_neighbours(hidden: np.ndarray) -> float:
    pairs = [(hidden[:, :-1], hidden[:, 1:]), (hidden[:-1], hidden[1:])]
    return sum((a & b).sum() for a, b in pairs) / sum(a.sum() for a, _ in pairs)


@pytest.mark.parametrize(("count", "blocks", "chance"), [(75, 0.86, 0.38), (147, 0.94, 0.75)])
def test_hidden_cells_lie_together_in_blocks_and_not_at_random(
    count: int, blocks: float, chance: float
) -> None:
    rng = random.Random(0)
    published = [hide_blocks(rng, (14, 14), count, 16) for _ in range(300)]
    assert np.mean([share_of_hidden_neighbours(mask) for mask in published]) == pytest.approx(
        blocks, abs=0.01
    )
    ratio = (count + 0.5) / 196
    for masker, wanted in ((BlockMasker(ratio, UNIT), blocks), (RandomMasker(ratio, UNIT), chance)):
        shares = [
            share_of_hidden_neighbours(draw(masker, seed, (14, 14)).hidden[0].numpy()) for seed in range(300)
        ]
        assert np.mean(shares) == pytest.approx(wanted, abs=0.02)


@few
@given(st.tuples(st.integers(2, 14), st.integers(2, 14)), st.integers(0, 196), st.integers(1, 16), seeds)
def test_blocks_never_hide_more_than_asked(
    grid: tuple[int, int], count: int, smallest: int, seed: int
) -> None:
    count = min(count, grid[0] * grid[1])
    assert hide_blocks(random.Random(seed), grid, count, smallest).sum() <= count


def test_random_masks_hide_every_cell_equally_often() -> None:
    drawn = np.stack([draw(RandomMasker(0.75, UNIT), seed, (4, 6)).hidden[0].numpy() for seed in range(2000)])
    assert np.abs(drawn.mean(0) - 0.75).max() < 0.05


@pytest.mark.parametrize("grid", [(14, 14), (6, 10), (7, 5)])
def test_grid_masking_keeps_the_even_rows_and_columns(grid: tuple[int, int]) -> None:
    mask = draw(GridMasker(UNIT), 0, grid)
    assert_sound(mask, grid)
    assert not mask.hidden[0, ::2, ::2].any() and mask.visible.shape[1] == -(-grid[0] // 2) * -(-grid[1] // 2)


def test_a_single_cell_cannot_be_grid_masked() -> None:
    with pytest.raises(UserError, match="at least 2 x 2"):
        draw(GridMasker(UNIT), 0, (1, 1))


def test_random_masks_take_a_third_axis() -> None:
    assert_sound(RandomMasker(0.75, UNIT)(np.random.default_rng(0), (4, 6, 5)), (4, 6, 5))


def test_masks_of_samples_are_joined_in_order() -> None:
    singles = [draw(RandomMasker(0.5, UNIT, 0.5), seed, (4, 4)) for seed in range(3)]
    joined = collate(singles)
    assert joined.hidden.shape == (3, 4, 4)
    for i, single in enumerate(singles):
        assert torch.equal(joined.hidden[i], single.hidden[0]) and torch.equal(
            joined.decoded[i], single.decoded[0]
        )


def test_a_mask_is_refined_to_the_stride_of_a_finer_map() -> None:
    mask = from_hidden(torch.tensor([[[True, False], [False, True]]]), (32, 16))
    assert mask.at((16, 8))[0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    with pytest.raises(UserError, match="does not fit a feature map of stride 5"):
        mask.at((5, 8))


def test_masks_that_hide_all_or_differently_many_cells_are_refused() -> None:
    with pytest.raises(UserError, match="same number"):
        from_hidden(torch.tensor([[[True, False]], [[False, False]]]), UNIT)
    with pytest.raises(UserError, match="at least one cell visible"):
        from_hidden(torch.ones(2, 1, 2, dtype=torch.bool), UNIT)


def test_an_empty_row_of_indices_keeps_its_place() -> None:
    assert indices(torch.zeros(3, 2, 2, dtype=torch.bool)).shape == (3, 0)


def test_another_ratio_keeps_the_rule() -> None:
    assert at_ratio(BlockMasker(0.5, UNIT, 0.3), 0.75) == BlockMasker(0.75, UNIT, 0.3)
    with pytest.raises(UserError, match="three cells of four"):
        at_ratio(GridMasker(UNIT), 0.5)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="known are 'random', 'block' and 'grid'"):
        build_masker("blocks", 0.5, UNIT)


def test_avg_distance_of_known_masks() -> None:
    single = np.zeros((5, 5), dtype=bool)
    single[2, 2] = True
    assert avg_distance(single) == 1
    for half in (1, 2, 5):  # a stripe of width 2m between visible halves: (m + 1) / 2
        stripe = np.zeros((3, 20), dtype=bool)
        stripe[:, 10 - half : 10 + half] = True
        assert avg_distance(stripe) == pytest.approx((half + 1) / 2)
    assert math.isnan(avg_distance(np.ones((2, 2), dtype=bool)))
    assert math.isnan(avg_distance(np.zeros((2, 2), dtype=bool)))
    assert avg_distance(single, (4, 4)) == 1.25  # 12 pixels at 1, 4 at 2


def test_mean_avg_distance_of_random_masks_is_in_the_papers_table() -> None:
    masker = build_masker("random", 0.6, (32, 32))
    assert mean_avg_distance(masker, (192, 192), samples=60) == pytest.approx(15.4, rel=0.1)
    assert mean_avg_distance(masker, (192, 192), 5, seed=1) == mean_avg_distance(
        masker, (192, 192), 5, seed=1
    )
