"""Trivial predictors against numbers made by hand."""

import numpy as np
import pytest
import torch

from mimkit.analysis.trivial import nearest_visible, trivial_losses
from mimkit.masks import GridMasker, Mask, RandomMasker, collate, from_hidden
from mimkit.methods.mae import MAE
from mimkit.ops import units


def halves(values: list[float], hidden: list[bool]) -> tuple[torch.Tensor, Mask]:
    """A grey image of one row of 2 x 2 patches, each flat with its value."""
    image = torch.tensor(values).repeat_interleave(2)[None, None, None].repeat(1, 1, 2, 1)  # (1, 1, 2, 2 n)
    return image, from_hidden(torch.tensor(hidden)[None, None], (2, 2))


def test_flat_patches_give_the_squares_one_expects() -> None:
    image, mask = halves([1.0, 3.0, 5.0, 6.0], [False, True, True, False])
    losses = trivial_losses(image, mask, (2, 2), norm_pix=False)
    assert losses["zero"] == pytest.approx((9 + 25) / 2)
    assert losses["image_mean"] == pytest.approx(((3 - 3.5) ** 2 + (5 - 3.5) ** 2) / 2)
    assert losses["nearest_visible"] == pytest.approx(((3 - 1) ** 2 + (5 - 6) ** 2) / 2)
    assert losses["patch_mean"] == 0


def test_normalised_targets_put_the_answer_zero_at_one() -> None:
    torch.manual_seed(0)
    images = torch.randn(3, 1, 32, 32) * 4 + 7
    masks = [RandomMasker(0.75, (8, 8))(np.random.default_rng(i), (4, 4)) for i in range(3)]
    losses = trivial_losses(images, collate(masks), (8, 8), norm_pix=True)
    # unbiased variance: n - 1 of n
    assert losses["zero"] == pytest.approx(63 / 64, rel=1e-4)
    assert losses["patch_mean"] == pytest.approx(
        losses["zero"], rel=1e-4
    )  # one channel: nothing but the mean, 0
    assert losses["nearest_visible"] == pytest.approx(2 * 63 / 64, rel=0.2)  # unrelated noise


def test_the_true_tint_helps_on_coloured_patches() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 16, 16) * 0.1 + torch.tensor([1.0, 0.0, -1.0])[:, None, None]
    mask = collate([GridMasker((4, 4))(np.random.default_rng(0), (4, 4))] * 2)
    losses = trivial_losses(images, mask, (4, 4), norm_pix=True)
    assert losses["patch_mean"] < 0.05 < 0.9 < losses["zero"]


def test_zero_is_the_loss_of_a_model_that_answers_zero() -> None:
    from mimkit import encoders
    from mimkit.data.batch import Batch

    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 48)
    mask = collate(
        [RandomMasker(0.5, (16, 16), decode=0.7)(np.random.default_rng(i), (2, 3)) for i in range(2)]
    )
    for norm_pix, floor in ((False, 0.0), (True, 0.0), (True, 2.0)):
        encoder = encoders.build("vit_tiny", size=(32, 48))
        method = MAE(
            encoder, RandomMasker(0.5, (16, 16)), (32, 48), 32, 1, 2, norm_pix=norm_pix, min_std=floor
        )
        torch.nn.init.zeros_(method.decoder.pred.weight)
        torch.nn.init.zeros_(method.decoder.pred.bias)
        loss = float(method(Batch(images, torch.arange(2), mask)).total.detach())
        assert trivial_losses(images, mask, (16, 16), norm_pix, floor)["zero"] == pytest.approx(
            loss, rel=1e-5
        )


def test_only_decoded_patches_are_compared() -> None:
    image, mask = halves([1.0, 3.0, 5.0, 6.0], [False, True, True, False])
    mask = Mask(mask.hidden, mask.unit, mask.visible, torch.tensor([[2]]))
    assert trivial_losses(image, mask, (2, 2), norm_pix=False)["zero"] == pytest.approx(25)


def test_a_mask_of_coarser_cells_than_the_patches_counts_every_patch() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    hidden = torch.tensor([[[True, False], [False, False]]] * 2)
    coarse = trivial_losses(images, from_hidden(hidden, (32, 32)), (16, 16), norm_pix=True)
    fine = trivial_losses(
        images, from_hidden(from_hidden(hidden, (32, 32)).at((16, 16)), (16, 16)), (16, 16), norm_pix=True
    )
    assert coarse == fine


def test_nearest_goes_by_pixels_and_then_by_the_lower_index() -> None:
    # 3 x 3 cells of 4 x 16 pixels: the row above is nearer than the column beside
    wanted, visible = torch.tensor([[4]]), torch.tensor([[1, 3, 5, 7]])
    assert nearest_visible(visible, wanted, (3, 3), (4, 16)).tolist() == [[1]]
    assert nearest_visible(visible, wanted, (3, 3), (16, 4)).tolist() == [[3]]
    assert nearest_visible(visible, wanted, (3, 3), (8, 8)).tolist() == [[1]]


def test_inputs_stay_as_they_were() -> None:
    images = torch.randn(1, 3, 32, 32)
    before = images.clone()
    trivial_losses(
        images, RandomMasker(0.5, (16, 16))(np.random.default_rng(0), (2, 2)), (16, 16), norm_pix=True
    )
    assert torch.equal(images, before)
    assert units.patchify(images, (16, 16)).shape == (1, 4, 768)
