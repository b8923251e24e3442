"""Mixup and CutMix: the draws are a golden case; here are what the result is made of, and what is refused."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mimkit.data.batch import Batch
from mimkit.data.mixing import MODES, Mixing, cut_box, smooth_targets
from mimkit.errors import UserError

SIZE = (12, 20)
every_mode = pytest.mark.parametrize("mode", MODES)


def mixed(mixing: Mixing, seed: int = 0, count: int = 8) -> tuple[Tensor, Tensor]:
    """Images of which every pixel holds the image's number, one class each, mixed."""
    images = torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 3, *SIZE)
    labels = torch.arange(count)
    return mixing.apply(np.random.default_rng(seed), images, labels)


@every_mode
@pytest.mark.parametrize("seed", range(6))
def test_a_target_says_how_much_of_each_image_is_in_the_picture(mode: str, seed: int) -> None:
    images, targets = mixed(Mixing(8, smoothing=0.0, mode=mode), seed)
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    expected = (targets * torch.arange(8.0)).sum(1)  # the mean number of the pixels
    torch.testing.assert_close(images.mean((1, 2, 3)), expected, rtol=1e-4, atol=1e-4)


@every_mode
def test_the_partner_is_the_image_at_the_other_end(mode: str) -> None:
    _, targets = mixed(Mixing(8, smoothing=0.0, mode=mode))
    for i, row in enumerate(targets):
        assert set(row.nonzero().flatten().tolist()) <= {i, 7 - i}


def test_one_draw_serves_the_batch_a_pair_or_an_image() -> None:
    shares = {mode: mixed(Mixing(8, cutmix=0, smoothing=0, mode=mode))[1].diagonal() for mode in MODES}
    assert shares["batch"].unique().numel() == 1
    assert shares["pair"].unique().numel() == 4 and torch.equal(shares["pair"], shares["pair"].flip(0))
    assert shares["elem"].unique().numel() == 8


def test_cutmix_pastes_whole_pixels_and_mixup_blends_all() -> None:
    pasted, _ = mixed(Mixing(8, mixup=0))
    assert set(pasted[1].unique().tolist()) == {1.0, 6.0}
    blended, _ = mixed(Mixing(8, cutmix=0))
    assert blended[1].unique().numel() == 1 and 1 < float(blended[1, 0, 0, 0]) < 6


@every_mode
def test_without_luck_nothing_is_mixed_but_targets_are_smoothed(mode: str) -> None:
    images, targets = mixed(Mixing(8, probability=0.0, smoothing=0.1, mode=mode))
    assert torch.equal(images[:, 0, 0, 0], torch.arange(8.0))
    torch.testing.assert_close(targets, smooth_targets(torch.arange(8), 8, 0.1))


def test_switch_decides_how_often_a_rectangle_is_pasted() -> None:
    kinds = [mixed(Mixing(8, switch=0.2), seed)[0][1].unique().numel() > 1 for seed in range(400)]
    assert 0.14 < np.mean(kinds) < 0.26


def test_a_rectangle_may_reach_over_the_border_and_is_cut_there() -> None:
    for seed in range(50):
        top, left, height, width = cut_box(np.random.default_rng(seed), SIZE, 0.3)
        assert 0 <= top <= top + height <= SIZE[0] and 0 <= left <= left + width <= SIZE[1]
    assert cut_box(np.random.default_rng(0), SIZE, 1.0)[2:] == (0, 0)


def test_numbers_come_from_torchs_generator_alone() -> None:
    batch = Batch(torch.randn(4, 3, *SIZE), torch.arange(4), targets=torch.tensor([0, 1, 2, 3]))
    mixing = Mixing(4)
    torch.manual_seed(3)
    first, then = mixing(batch), mixing(batch)
    torch.manual_seed(3)
    again = mixing(batch)
    assert torch.equal(first.images, again.images) and torch.equal(first.targets, again.targets)
    assert not torch.equal(first.images, then.images)
    assert torch.equal(first.ids, batch.ids)


def test_images_keep_their_precision() -> None:
    images = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    made, _ = Mixing(2, cutmix=0).apply(np.random.default_rng(0), images, torch.tensor([0, 1]))
    assert made.dtype == torch.float64


def test_an_odd_micro_batch_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match="5 is odd; choose an even"):
        mixed(Mixing(8), count=5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "half"}, "'half'; known are batch, pair, elem"),
        ({"mixup": 0, "cutmix": 0}, "leave both out"),
        ({"mixup": -1}, "positive"),
    ],
)
def test_settings_that_mix_nothing_are_refused(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Mixing(3, **options)
