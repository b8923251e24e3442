"""Attention statistics of whole models: analytic values, agreement with the arrays' own formulas, bad input."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from mimkit import analysis, encoders
from mimkit.analysis import geometry, measures
from mimkit.analysis.attention import AttentionStatistics
from mimkit.data.batch import Batch
from mimkit.errors import DataError, UserError


def images(count: int = 4, size: tuple[int, int] = (64, 96)) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))


def small(**options: object) -> encoders.Encoder:
    torch.manual_seed(0)
    return encoders.build("vit:48x3x4", size=(64, 96), **options)


def statistics(model: nn.Module, x: torch.Tensor, **options: object) -> AttentionStatistics:
    return analysis.attention_statistics(model, x.split(2), **options)


def test_uniform_attention_has_the_analytic_distance_and_entropy() -> None:
    model = small()
    for site in model.attentions():
        nn.init.zeros_(site.module.qkv.weight)
    for layer in statistics(model, images()).layers:
        assert layer.distance == pytest.approx(geometry.uniform_distance((4, 6), (16, 16)), rel=1e-5)
        assert layer.uniform_distance == pytest.approx(geometry.uniform_distance((4, 6), (16, 16)))
        assert layer.entropy == pytest.approx(math.log(24), rel=1e-5)
        assert layer.uniform_entropy == pytest.approx(math.log(24))
        assert np.abs(layer.kl).max() < 1e-6 and np.abs(layer.nmi).max() < 1e-5
        assert layer.patch_mass == pytest.approx(24 / 25, rel=1e-5)


@pytest.mark.parametrize("class_token", [True, False])
def test_the_stream_gives_what_the_arrays_give(class_token: bool) -> None:
    model, x = small(class_token=class_token).double(), images(6).double()
    found = statistics(model, x, js=True)
    for site, layer in zip(model.attentions(), found.layers, strict=True):
        seen: list[torch.Tensor] = []

        def keep(module: nn.Module, given: tuple[torch.Tensor], seen: list[torch.Tensor] = seen) -> None:
            seen.append(torch.cat(list(module.probabilities(given[0])), 2))

        handle = site.module.register_forward_pre_hook(keep)
        with torch.no_grad():
            model.eval()(x)
        handle.remove()
        p, mass = measures.without_prefix(seen[0], int(class_token))
        distance = measures.attention_distance(p, geometry.distances((4, 6), (16, 16)))
        for got, want in (
            (layer.distance, distance.mean((0, 2))),
            (layer.entropy, measures.entropy(p).mean((0, 2))),
            (layer.kl, measures.kl_matrix(p)),
            (layer.js, measures.js_matrix(p)),
            (layer.patch_mass, mass.mean((0, 2))),
            (layer.per_image["distance"], distance.mean((1, 2))),
        ):
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(layer.nmi, measures.attention_nmi(p).mean(0).numpy(), atol=1e-5)


def test_batches_and_their_order_change_nothing() -> None:
    model, x = small(), images(6)
    one = analysis.attention_statistics(model, [Batch(x, torch.arange(6))])
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    other = analysis.attention_statistics(model, [Batch(x[part], part) for part in order.split(4)])
    for a, b in zip(one.layers, other.layers, strict=True):
        np.testing.assert_allclose(a.kl, b.kl, atol=1e-6)
        np.testing.assert_allclose(a.per_image["entropy"], b.per_image["entropy"], atol=1e-5)


def test_the_table_is_long_and_has_a_row_for_each_head_and_for_the_mean() -> None:
    table = statistics(small(), images()).to_frame()
    rows = list(zip(*table.values(), strict=True))
    assert list(table)[:5] == ["model", "layer", "head", "metric", "value"]
    chosen = [row for row in rows if row[1] == 2 and row[3] == "distance"]
    assert [row[2] for row in chosen] == [0, 1, 2, 3, None]
    assert chosen[-1][4] == pytest.approx(sum(row[4] for row in chosen[:-1]) / 4)


def test_the_model_and_its_output_are_left_as_they_were() -> None:
    model, x = small().train(), images()
    before = model.eval()(x).levels[0]
    model.train()
    statistics(model, x)
    assert model.training and not any(part._forward_hooks for part in model.modules())
    torch.testing.assert_close(model.eval()(x).levels[0], before)


def test_what_cannot_be_looked_at_is_said_in_a_sentence() -> None:
    with pytest.raises(UserError, match="no attention layers"):
        statistics(nn.Conv2d(3, 3, 3), images())
    with pytest.raises(UserError, match="at least one image"):
        analysis.attention_statistics(small(), [])
    with pytest.raises(DataError, match="64 x 96 pixels came some of 32 x 32"):
        analysis.attention_statistics(small(), [images(), images(2, (32, 32))])
    with pytest.raises(UserError, match="floating point"):
        analysis.attention_statistics(small(), [images().byte()])
    broken = small()
    broken.blocks[1].mlp.fc1.weight.data[0] = math.nan
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc1\.weight"):
        statistics(broken, images())


def test_autocast_does_not_round_the_statistics() -> None:
    model, x = small(), images()
    seen = statistics(model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = statistics(model, x)
    for a, b in zip(seen.layers, half.layers, strict=True):
        np.testing.assert_allclose(b.distance, a.distance, rtol=2e-3)
        assert b.entropy.max() <= b.uniform_entropy + 1e-5
        assert np.abs(np.diag(b.kl)).max() < 1e-12 and b.kl.min() > -1e-6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_number_of_images() -> None:
    script = """
import resource, sys, torch
from mimkit import analysis, encoders
torch.manual_seed(0)
model = encoders.build("vit:96x3x3", size=(112, 112))
analysis.attention_statistics(model, (torch.randn(8, 3, 112, 112) for _ in range(int(sys.argv[1]) // 8)))
with open("/proc/self/status") as status:
    print(next(line for line in status if line.startswith("VmHWM")).split()[1])
"""
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", script, n], capture_output=True, text=True, check=True
            ).stdout
        )
        for n in ("64", "512")
    ]
    assert peaks[1] < 1.05 * peaks[0]
