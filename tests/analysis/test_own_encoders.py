"""Every encoder of mimkit runs through every analysis, in each of its forms."""

from typing import Any

import numpy as np
import pytest
import torch

from mimkit import analysis, encoders
from mimkit.analysis.subjects import attention_sites

ENCODERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("vit:48x2x3", {"size": (64, 96)}, 0),
    "vit without class token": ("vit:48x2x3", {"size": (64, 96), "class_token": False}, 0),
    "mcmae": ("mcmae:24-32-48x1-1-2x3", {"size": (64, 96)}, 2),
    "mcmae in windows": ("mcmae:24-32-48x1-1-4x3", {"size": (64, 96), "form": "detection"}, 2),
    "mcmae in padded windows": ("mcmae:24-32-48x1-1-4x3", {"size": (64, 96), "form": "vitdet"}, 2),
    "mcmae with relative positions": (
        "mcmae:24-32-48x1-1-2x3",
        {"size": (64, 96), "form": "segmentation"},
        2,
    ),
}


@pytest.mark.parametrize(("name", "options", "kernels"), ENCODERS.values(), ids=list(ENCODERS))
def test_an_encoder_runs_through_every_analysis(name: str, options: dict[str, Any], kernels: int) -> None:
    torch.manual_seed(0)
    encoder = encoders.build(name, **options)
    x = torch.randn(4, 3, 64, 96)
    found = analysis.attention_statistics(encoder, x.split(3))
    assert [layer.name for layer in found.layers] == [site.name for site in attention_sites(encoder)]
    for layer in found.layers:
        assert layer.grid == (4, 6) and layer.stride == (16, 16)
        assert layer.distance == pytest.approx(
            layer.uniform_distance, rel=0.2
        )  # random weights look everywhere
        assert 0.8 < layer.entropy.mean() / layer.uniform_entropy <= 1 + 1e-6
    alike = analysis.cka(encoder, None, [x])
    assert np.diag(alike.values) == pytest.approx(1)
    blocks = analysis.layer_statistics(encoder, [x]).layers
    assert len(blocks) == len(alike.layers_a) == len(found.layers) + kernels
    maps = analysis.dense_features(encoder, x)
    assert maps["final"].shape[:3] == (4, 4, 6)
    assert [maps[layer.name].shape[1:3] for layer in blocks] == [layer.amplitude.shape for layer in blocks]
    shown = analysis.attention_maps(encoder, x[:1]).layers[-1].of((3, 5))
    assert shown.shape[2:] == (4, 6) and float(shown.sum((2, 3)).min()) == pytest.approx(1, abs=1e-5)
    if kernels:
        read = analysis.kernel_statistics(encoder).layers
        assert [layer.stride for layer in read] == [(4, 4), (8, 8)]
        assert [layer.kernel for layer in read] == [(5, 5)] * 2


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_compiled_model_is_looked_into_as_it_is(wrapped: bool) -> None:
    torch.manual_seed(0)
    encoder, x = encoders.build("vit:48x2x3", size=(32, 32)), torch.randn(4, 3, 32, 32)
    plain = analysis.attention_statistics(encoder, [x]), analysis.cka(encoder, None, [x])
    if wrapped:
        compiled = torch.compile(encoder, backend="eager")
    else:
        compiled = encoder
        compiled.compile(backend="eager")
    with torch.no_grad():
        compiled.eval()(x)
    found = analysis.attention_statistics(compiled, [x]), analysis.cka(compiled, None, [x])
    np.testing.assert_allclose(found[0].layers[1].kl, plain[0].layers[1].kl)
    np.testing.assert_allclose(found[1].values, plain[1].values)
    assert len(analysis.layer_statistics(compiled, [x]).layers) == len(found[0].layers)
