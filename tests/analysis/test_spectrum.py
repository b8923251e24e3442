"""Spectra, token norms, frequencies, colours, rollout and attention maps: analytic values and bad input."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from mimkit import analysis, encoders
from mimkit.analysis import flow, pca, spectrum
from mimkit.errors import UserError


def test_orthonormal_directions_are_counted_by_every_measure() -> None:
    x = torch.randn(64, 8, dtype=torch.float64)
    x = torch.linalg.qr(x - x.mean(0))[0]
    covariance = spectrum.Covariance()
    covariance.add(x)
    singular = covariance.singular()
    counts = (
        spectrum.effective_rank_of(singular),
        spectrum.participation_ratio(singular),
        spectrum.stable_rank(singular),
    )
    assert counts == pytest.approx((8, 8, 8), rel=1e-6)
    alike = torch.zeros(8)
    assert spectrum.participation_ratio(alike) == spectrum.stable_rank(alike) == 1
    assert spectrum.effective_rank_of(alike) == 1


def test_layers_of_a_model_are_measured_in_one_pass_whatever_the_batches() -> None:
    torch.manual_seed(0)
    vit, x = encoders.build("vit:32x3x2", size=(32, 48)), torch.randn(8, 3, 32, 48)
    one, other = (analysis.layer_statistics(vit, x.split(n)) for n in (8, 3))
    assert [layer.name for layer in one.layers] == ["blocks.0", "blocks.1", "blocks.2"]
    for a, b in zip(one.layers, other.layers, strict=True):
        assert a.effective_rank == pytest.approx(b.effective_rank, rel=1e-6)
        np.testing.assert_allclose(a.singular, b.singular, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(a.amplitude, b.amplitude, rtol=1e-5)
        assert a.amplitude.shape == (2, 3) and a.log_spectrum[0] == 0
    table = one.to_frame()
    assert set(table["metric"]) >= {
        "effective_rank",
        "norm_median",
        "outliers",
        "singular_1",
        "high_minus_low",
    }
    pooled = analysis.layer_statistics(vit, [x], examples="pooled")
    assert pooled.layers[0].effective_rank <= 7 + 1e-6
    with pytest.raises(UserError, match="at least two images, and there were 1"):
        analysis.layer_statistics(vit, [x[:1]])


def test_a_flat_map_has_low_frequencies_and_a_checkerboard_high_ones() -> None:
    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2
    flat, checked = torch.ones(1, 4, 4, 1), (2.0 * board - 1)[None, ..., None]
    assert spectrum.high_minus_low(spectrum.amplitude(flat)) < -10
    assert spectrum.high_minus_low(spectrum.amplitude(checked)) > 10


def test_one_large_token_is_an_outlier() -> None:
    maps = torch.randn(2, 8, 8, 16)
    assert spectrum.outlier_share(spectrum.token_norms(maps)) == 0
    maps[1, 2, 3] *= 30
    assert spectrum.outlier_share(spectrum.token_norms(maps)) == pytest.approx(1 / 128)


def scene() -> torch.Tensor:
    """Two images whose left half (foreground) lies along another direction than the right."""
    maps = 0.1 * torch.randn(2, 6, 6, 8, generator=torch.Generator().manual_seed(0))
    maps[:, :, :3, 0] += 5
    maps[:, :, 3:, 0] -= 5
    maps[:, :3, :3, 1] += 1
    return maps


def test_colours_split_foreground_from_background_and_agree_between_images() -> None:
    picture = analysis.pca_rgb(scene())
    assert (
        picture.rgb.shape == (2, 6, 6, 3) and 0 <= float(picture.rgb.min()) <= float(picture.rgb.max()) <= 1
    )
    assert picture.foreground[:, :, :3].all() and not picture.foreground[:, :, 3:].any()
    assert (analysis.pca_rgb(scene(), flip=True).foreground == ~picture.foreground).all()
    assert (picture.basis.components.abs().max(1).values == picture.basis.components.max(1).values).all()
    again = analysis.pca_rgb(scene()[:1], fitted=picture)
    torch.testing.assert_close(again.rgb, picture.rgb[:1])


def test_two_steps_colour_the_foreground_alone() -> None:
    picture = analysis.pca_rgb(scene(), two_steps=True)
    assert picture.first is not None and picture.rgb[:, :, 3:].abs().max() == 0
    upper, lower = picture.rgb[:, :3, :3, 0].mean(), picture.rgb[:, 3:, :3, 0].mean()
    assert upper - lower > 0.5  # the part of the foreground that differs
    torch.testing.assert_close(analysis.pca_rgb(scene(), two_steps=True, fitted=picture).rgb, picture.rgb)


def test_colours_need_enough_to_fit() -> None:
    with pytest.raises(UserError, match="at least 3 channels"):
        analysis.pca_rgb(torch.randn(1, 4, 4, 2))
    with pytest.raises(UserError, match="no finite numbers"):
        analysis.pca_rgb(torch.full((1, 4, 4, 8), torch.nan))
    lonely = torch.zeros(1, 4, 4, 4)
    lonely[0, 0, 0, 0] = 9
    with pytest.raises(UserError, match="try flip=True"):
        pca.pca_rgb(lonely, two_steps=True)


def test_rollout_of_looking_at_oneself_is_the_identity_and_rows_stay_distributions() -> None:
    eye = torch.eye(5)[None].expand(2, -1, -1)
    torch.testing.assert_close(analysis.rollout([eye, eye]), torch.eye(5))
    layers = [torch.randn(3, 2, 5, 5).softmax(-1) for _ in range(4)]
    for heads in ("mean", "max"):
        torch.testing.assert_close(analysis.rollout(layers, heads).sum(-1), torch.ones(3, 5))
    torch.testing.assert_close(flow.rollout_map(analysis.rollout(layers), 0).sum(-1), torch.ones(3))
    with pytest.raises(UserError, match="same tokens"):
        analysis.rollout([torch.eye(5)[None], torch.eye(4)[None]])
    with pytest.raises(UserError, match="at least one layer"):
        analysis.rollout([])


def test_maps_show_where_a_patch_or_the_class_token_looks() -> None:
    torch.manual_seed(0)
    vit, x = encoders.build("vit:32x3x2", size=(32, 48)), torch.randn(2, 3, 32, 48)
    maps = analysis.attention_maps(vit, x, layers=[1, 3])
    assert [layer.name for layer in maps.layers] == ["blocks.0.attn", "blocks.2.attn"]
    shown = maps.layers[0].of((1, 2))
    assert shown.shape == (2, 2, 2, 3)
    torch.testing.assert_close(shown.sum((2, 3)), torch.ones(2, 2))
    assert maps.layers[0].of(0).shape == (2, 2, 2, 3)
    assert maps.rollout().shape == (2, 2, 3)
    with pytest.raises(UserError, match=r"no patch \(2, 0\)"):
        maps.layers[0].of((2, 0))
    with pytest.raises(UserError, match="1 prefix tokens; there is no token 1"):
        maps.layers[0].of(1)
    with pytest.raises(UserError, match="layers 1 to 3; there is no layer 4"):
        analysis.attention_maps(vit, x, layers=[4])
    with pytest.raises(UserError, match="at most 16 images"):
        analysis.attention_maps(vit, x.repeat(9, 1, 1, 1))


def test_windows_are_put_back_into_the_whole_grid() -> None:
    torch.manual_seed(0)
    swin = timm.create_model("swinv2_tiny_window8_256", img_size=(64, 64), window_size=4, depths=(2, 1, 1, 1))
    maps = analysis.attention_maps(swin, torch.randn(1, 3, 64, 64), layers=[1, 2])
    plain, shifted = maps.layers
    assert plain.grid == (16, 16) and plain.prefix == 0
    inside = plain.of((0, 0))[0, 0]
    assert float(inside[:4, :4].sum()) == pytest.approx(1, abs=1e-5) and float(inside[4:].abs().max()) == 0
    moved = shifted.of((3, 3))[0, 0]  # shift 2: its window holds rows and columns 2 to 5
    assert float(moved[2:6, 2:6].sum()) == pytest.approx(1, abs=1e-5)


def test_dense_features_come_from_every_block_and_from_behind_the_norm() -> None:
    torch.manual_seed(0)
    vit, x = encoders.build("vit:32x3x2", size=(32, 48)), torch.randn(2, 3, 32, 48)
    found = analysis.dense_features(vit, x)
    assert list(found) == ["blocks.0", "blocks.1", "blocks.2", "final"]
    assert all(maps.shape == (2, 2, 3, 32) for maps in found.values())
    torch.testing.assert_close(vit.norm(found["blocks.2"]), found["final"])
    broken = encoders.build("vit:32x3x2", size=(32, 48))
    nn.init.constant_(broken.blocks[0].mlp.fc1.bias, float("nan"))
    with pytest.raises(UserError, match=r"blocks\.0\.mlp\.fc1\.bias"):
        analysis.dense_features(broken, x)
