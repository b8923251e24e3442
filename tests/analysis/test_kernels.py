"""Depth-wise kernels as attention: analytic values, strides, merged branches, bad input."""

import math

import pytest
import timm
import torch
from torch import Tensor, nn

from mimkit import analysis, encoders
from mimkit.analysis import kernels
from mimkit.errors import UserError


@pytest.mark.parametrize(
    ("side", "cells"), [(5, 1.8743642627), (13, 4.961), (27, 10.324), (31, 11.8555565315)]
)
def test_a_uniform_kernel_has_the_known_distance_and_entropy(side: int, cells: float) -> None:
    a = kernels.kernel_attention(torch.full((3, side, side), -0.2, dtype=torch.float64))
    assert kernels.kernel_distance(a).tolist() == pytest.approx([cells] * 3, abs=1e-3)
    assert kernels.kernel_entropy(a).tolist() == pytest.approx([math.log(side**2)] * 3)
    assert kernels.kernel_kl(a) == pytest.approx(0, abs=1e-12)


def test_a_kernel_that_looks_at_its_centre_is_at_no_distance() -> None:
    a = torch.zeros(2, 5, 5)
    a[:, 2, 2] = 1
    assert kernels.kernel_distance(a).abs().max() == 0 and kernels.kernel_entropy(a).abs().max() == 0


def test_an_even_kernel_has_its_centre_between_cells() -> None:
    a = kernels.kernel_attention(torch.ones(1, 2, 2))
    assert float(kernels.kernel_distance(a)) == pytest.approx(math.sqrt(0.5))


def test_divergence_of_all_pairs_is_what_the_pairs_give() -> None:
    a = kernels.kernel_attention(torch.randn(5, 3, 3, dtype=torch.float64)).flatten(1)
    pairs = [(a[i] * (a[i].log() - a[j].log())).sum() for i in range(5) for j in range(5) if i != j]
    assert kernels.kernel_kl(a.view(5, 3, 3)) == pytest.approx(float(torch.stack(pairs).mean()))


def test_strides_come_from_the_model_itself() -> None:
    torch.manual_seed(0)
    found = analysis.kernel_statistics(encoders.build("timm:convnext_atto"))
    assert [layer.stride[0] for layer in found.layers] == [4] * 2 + [8] * 2 + [16] * 6 + [32] * 2
    assert all(layer.kernel == (7, 7) for layer in found.layers)
    rows = found.to_frame()
    assert rows["metric"].count("kernel_kl") == 12
    assert max(rows["head"], key=lambda head: head or 0) == found.layers[-1].distance.shape[0] - 1


class Branch(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, side, padding=side // 2, groups=4, bias=False)
        self.bn = nn.BatchNorm2d(4)
        nn.init.uniform_(self.bn.weight)
        self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Reparametrised(nn.Module):
    """As RepLKNet trains it: a large and a small kernel side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.lkb_origin, self.small_conv = Branch(7), Branch(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lkb_origin(x) + self.small_conv(x)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, 4)
        self.blocks = nn.ModuleList([Reparametrised()])

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks[0](self.stem(images))


def test_branches_are_merged_into_the_kernel_that_does_the_same() -> None:
    torch.manual_seed(0)
    network = Network().eval()
    block = network.blocks[0]
    norms = [(b.bn.weight, b.bn.running_var, b.bn.eps) for b in (block.lkb_origin, block.small_conv)]
    merged = analysis.merge_kernels(block.lkb_origin.conv.weight, block.small_conv.conv.weight, *norms)
    x = torch.randn(2, 4, 9, 9)
    shift = block(torch.zeros_like(x))
    torch.testing.assert_close(
        nn.functional.conv2d(x, merged, padding=3, groups=4) + shift, block(x), atol=1e-5, rtol=1e-5
    )
    found = analysis.kernel_statistics(network)
    assert [layer.name for layer in found.layers] == ["blocks.0.lkb_origin.conv"]
    want = kernels.kernel_distance(kernels.kernel_attention(merged[:, 0].double()), (4, 4))
    torch.testing.assert_close(torch.from_numpy(found.layers[0].distance), want, atol=1e-6, rtol=1e-6)


def test_what_has_no_kernels_or_no_place_is_said_in_a_sentence() -> None:
    with pytest.raises(UserError, match="no depth-wise kernels"):
        analysis.kernel_statistics(encoders.build("vit:32x1x2", size=(32, 32)))
    with pytest.raises(UserError, match="no place at the centre"):
        analysis.merge_kernels(torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 2, 2))
    with pytest.raises(UserError, match="normalised by 'max'"):
        analysis.kernel_statistics(timm.create_model("convnext_atto"), norm="max")
