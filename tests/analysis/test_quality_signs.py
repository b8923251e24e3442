"""Effective rank and attention entropy: analytic values, streaming."""

import math

import numpy as np
import pytest
import torch

from mimkit import encoders
from mimkit.analysis.geometry import whole
from mimkit.analysis.measures import Meter
from mimkit.analysis.quality import measure, quality
from mimkit.analysis.spectrum import Covariance, effective_rank
from mimkit.data.batch import Batch
from mimkit.errors import UserError


def batches(*sizes: int, pixels: int = 64) -> list[Batch]:
    torch.manual_seed(1)
    return [Batch(torch.randn(n, 3, pixels, pixels), torch.arange(n)) for n in sizes]


def test_effective_rank_of_known_matrices() -> None:
    orthonormal = torch.linalg.qr(torch.randn(64, 8) - torch.randn(64, 8).mean(0))[0]
    orthonormal = torch.linalg.qr(orthonormal - orthonormal.mean(0))[0]
    assert effective_rank(orthonormal - orthonormal.mean(0)) == pytest.approx(8, rel=1e-4)
    assert effective_rank(torch.outer(torch.randn(30), torch.randn(12))) == pytest.approx(1, rel=1e-4)
    assert effective_rank(torch.ones(10, 4)) == 1.0
    assert effective_rank(torch.randn(5, 200)) <= 4 + 1e-6


def test_covariance_is_the_same_in_pieces_and_at_once() -> None:
    x = torch.randn(50, 7) + 1000
    whole, parts = Covariance(), Covariance()
    whole.add(x)
    for part in x.split(9):
        parts.add(part)
    torch.testing.assert_close(whole.scatter, parts.scatter, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(whole.mean, parts.mean, rtol=1e-12, atol=0)


def test_uniform_attention_has_the_logarithm_of_the_patches() -> None:
    vit = encoders.build("vit_tiny", size=(64, 64))
    for site in vit.attentions():
        torch.nn.init.zeros_(site.module.qkv.weight)
        torch.nn.init.zeros_(site.module.qkv.bias)
    found = quality(vit, batches(2, 2))
    assert found.uniform == pytest.approx(math.log(16))
    assert len(found.entropy) == 12 and len(found.entropy[0]) == 3
    assert all(value == pytest.approx(math.log(16), abs=1e-5) for heads in found.entropy for value in heads)
    assert found.patch_mass[0] == pytest.approx(16 / 17, abs=1e-5)


def test_entropy_of_hand_made_rows() -> None:
    meter = Meter(whole((1, 3), (1, 1)), prefix=1)
    one_hot = torch.tensor([0.0, 1.0, 0.0, 0.0])
    uniform = torch.full((4,), 0.25)
    rows = torch.stack([one_hot, one_hot, uniform, uniform])[
        None, None
    ].log()  # the first is the class token's
    meter.add([rows[:, :, :2], rows[:, :, 2:]])
    assert meter.count == 1
    assert meter.mean("entropy").item() == pytest.approx(2 / 3 * math.log(3), abs=1e-6)
    assert meter.mean("mass").item() == pytest.approx((1 + 0.75 + 0.75) / 3, abs=1e-6)


def test_what_streams_equals_the_direct_computation() -> None:
    torch.manual_seed(0)
    vit = encoders.build("vit_tiny", size=(160, 160))  # 100 patches: two slices of queries
    for site in vit.attentions():
        torch.nn.init.normal_(site.module.qkv.weight, std=0.2)
    given = batches(3, pixels=160)[0]
    caught: list[torch.Tensor] = []
    handle = vit.blocks[5].attn.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    found = quality(vit, [given])
    handle.remove()
    width = caught[0].shape[-1]
    q, k, _ = vit.blocks[5].attn.qkv(caught[0]).view(3, 101, 3, 3, width // 3).permute(2, 0, 3, 1, 4).detach()
    a = (q @ k.transpose(-1, -2) / 8).softmax(-1)[:, :, 1:, 1:].double()
    a = a / a.sum(-1, keepdim=True)
    want = -(a * a.log()).sum(-1).mean((0, 2))
    np.testing.assert_allclose(found.entropy[5], want, rtol=1e-5)


def test_batches_of_any_size_give_the_same() -> None:
    torch.manual_seed(0)
    vit = encoders.build("vit_tiny", size=(32, 32))
    images = torch.randn(6, 3, 32, 32)
    whole, parts = measure(vit, images, 6), measure(vit, images, 4)
    assert whole.keys() == parts.keys()
    assert whole == pytest.approx(parts, rel=1e-5)
    assert {"effective_rank", "entropy_layer1", "entropy_layer12", "entropy_uniform"} <= set(whole)


def test_nothing_of_the_encoder_is_left_changed() -> None:
    vit = encoders.build("vit_tiny", size=(32, 32)).train()
    quality(vit, batches(2, pixels=32))
    assert vit.training
    assert not any(module._forward_pre_hooks for module in vit.modules())


def test_an_encoder_without_attention_has_a_rank_alone() -> None:
    found = quality(encoders.build("timm:resnet10t"), batches(4))
    assert found.entropy == () and found.uniform is None
    assert set(found.metrics()) == {"effective_rank"}


def test_one_image_is_too_few() -> None:
    vit = encoders.build("vit_tiny", size=(32, 32))
    with pytest.raises(UserError, match="at least two images; there was one"):
        quality(vit, batches(1, pixels=32))
    assert measure(vit, torch.randn(1, 3, 32, 32)) == {}
