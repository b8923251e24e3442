"""Necks: strides and shapes for any encoder, padding, bad input."""

import pytest
import torch

from mimkit import encoders
from mimkit.encoders.base import Features
from mimkit.errors import UserError
from mimkit.tasks.necks import Coarser, SimplePyramid


def test_a_simple_pyramid_makes_five_strides_of_a_plain_vit() -> None:
    encoder = encoders.build("vit:16x1x2", size=(64, 96))
    maps = SimplePyramid(16, 6)(encoder(torch.randn(2, 3, 64, 96)))
    assert [x.shape for x in maps] == [(2, 6, *side) for side in ((16, 24), (8, 12), (4, 6), (2, 3), (1, 2))]


def test_padding_beside_an_image_counts_as_its_border_does() -> None:
    neck = SimplePyramid(8, 6).double().eval()
    for norm in (level.lateral_norm for level in neck.levels):
        torch.nn.init.normal_(norm.bias)  # what padding would hold
    small = torch.randn(1, 4, 6, 8, dtype=torch.float64)
    canvas = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    canvas[:, :4, :6] = small
    valid = torch.zeros(1, 8, 8, dtype=torch.bool)
    valid[:, :4, :6] = True
    alone, padded = neck(Features((small,))), neck(Features((canvas,), valid=valid))
    for level, x, y in zip(
        range(3), alone, padded, strict=False
    ):  # those of the last level's own stride and finer
        h, w = x.shape[2:]
        torch.testing.assert_close(y[:, :, :h, :w], x, msg=f"level {level}")


def test_a_coarser_level_follows_those_of_the_encoder() -> None:
    encoder = encoders.build("mcmae:8-12-16x1-1-1x2", size=(80, 96))
    features = encoder(torch.randn(1, 3, 80, 96))
    pooled = Coarser(16)(features)
    assert [tuple(x.shape[1:]) for x in pooled] == [(8, 20, 24), (12, 10, 12), (16, 5, 6), (16, 3, 3)]
    published = Coarser(16, "conv").eval()(features)
    assert published[-1].shape == (1, 16, 2, 2)
    assert not dict(Coarser(16).named_parameters())


def test_bad_input_ends_in_a_sentence() -> None:
    with pytest.raises(UserError, match="Unknown way 'mean'"):
        Coarser(8, "mean")
    with pytest.raises(UserError, match="too small for a 3 x 3 convolution"):
        Coarser(8, "conv")(Features((torch.randn(1, 2, 2, 8),)))
