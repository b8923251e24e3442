"""Models of timm and transformers with random weights: every layer is captured, and is what the model computes."""

import warnings
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from mimkit import analysis, encoders
from mimkit.analysis.layers import block_names
from mimkit.analysis.subjects import attention_sites, prefix_tokens
from mimkit.errors import UserError

X = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def transformers_vit(attention: str = "sdpa") -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=64
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.ViTModel._from_config(config, attn_implementation=attention)
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.3)
    return model


def test_fused_and_explicit_attention_of_transformers_give_the_same() -> None:
    eager, fused = transformers_vit("eager"), transformers_vit("sdpa")
    with torch.no_grad():
        shown = eager.eval()(X, output_attentions=True).attentions
    for model in (eager, fused):
        found = analysis.attention_statistics(model, X.split(3))
        assert len(found.layers) == 2 and prefix_tokens(model) == 1
        for layer, p in zip(found.layers, shown, strict=True):
            own = p[:, :, 1:, 1:] / p[:, :, 1:, 1:].sum(-1, keepdim=True)
            np.testing.assert_allclose(layer.entropy, torch.special.entr(own).sum(-1).mean((0, 2)), rtol=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_fused_and_explicit_attention_of_timm_give_the_same(fused: bool) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2)
    seen: dict[int, Tensor] = {}
    for number, block in enumerate(model.blocks):
        nn.init.normal_(block.attn.qkv.weight, std=0.1)
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(
            lambda _, __, p, number=number: seen.__setitem__(number, p.clone())
        )
    with torch.no_grad():
        model.eval()(X)
    for block in model.blocks:
        block.attn.fused_attn = fused
    for number, layer in enumerate(analysis.attention_statistics(model, [X]).layers):
        own = seen[number][:, :, 1:, 1:]
        own = own / own.sum(-1, keepdim=True)
        np.testing.assert_allclose(layer.entropy, torch.special.entr(own).sum(-1).mean((0, 2)), rtol=1e-4)
        mass = seen[number][:, :, 1:, 1:].sum(-1).mean((0, 2))
        np.testing.assert_allclose(layer.patch_mass, mass, rtol=1e-4)


MODELS = {
    "vit with registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 70, "depth": 2}, 70, 5),
    "rotary positions": ("eva02_tiny_patch14_224", {"img_size": 70, "depth": 2}, 70, 1),
    "relative bias": ("beit_base_patch16_224", {"img_size": 64, "depth": 2}, 64, 1),
    "shifted windows": ("swin_tiny_patch4_window7_224", {"img_size": 64, "depths": (2, 2, 1, 1)}, 64, 0),
    "cosine windows": ("swinv2_tiny_window8_256", {"img_size": 64, "depths": (2, 2, 1, 1)}, 64, 0),
    "padded windows": (
        "samvit_base_patch16",
        {"img_size": 128, "depth": 2, "window_size": 3, "global_attn_indexes": (1,)},
        128,
        0,
    ),
}


@pytest.mark.parametrize(("name", "options", "side", "prefix"), MODELS.values(), ids=list(MODELS))
def test_every_kind_of_attention_is_captured(
    name: str, options: dict[str, Any], side: int, prefix: int
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, **options)
    x = torch.randn(4, 3, side, side)
    found = analysis.attention_statistics(model, [x])
    assert len(found.layers) == len(attention_sites(model)) == len(block_names(model))
    assert max(site.prefix for site in attention_sites(model)) == prefix
    for layer in found.layers:
        assert 0 < layer.distance.mean() <= 1.5 * layer.uniform_distance
        assert 0 < layer.entropy.max() <= layer.uniform_entropy + 1e-5
    assert analysis.cka(model, None, [x]).values.shape == (len(found.layers),) * 2


def test_the_wrapped_model_of_timm_gives_what_the_bare_one_gives() -> None:
    torch.manual_seed(0)
    wrapped = encoders.build("timm:swin_tiny_patch4_window7_224", size=(64, 64))
    bare = analysis.attention_statistics(wrapped.model, [X])
    for a, b in zip(analysis.attention_statistics(wrapped, [X]).layers, bare.layers, strict=True):
        np.testing.assert_allclose(a.kl, b.kl)


def test_a_convolutional_network_has_kernels_alikeness_and_spectra() -> None:
    model = timm.create_model("convnext_atto")
    with pytest.raises(UserError, match="kernel_statistics"):
        analysis.attention_statistics(model, [X])
    assert len(analysis.kernel_statistics(model).layers) == 12
    assert analysis.cka(model, None, [X]).values.shape == (12, 12)
    assert len(analysis.layer_statistics(model, [X]).layers) == 12


def test_an_unknown_layout_is_refused_by_name() -> None:
    model = timm.create_model("maxvit_rmlp_pico_rw_256")
    with pytest.raises(UserError, match=r"attn_block\.attn' attends to 64 tokens"):
        analysis.attention_statistics(model, [torch.randn(1, 3, 256, 256)])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_attention_that_cannot_be_heard_is_named() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2)
    model.blocks[1].attn.forward = lambda x, *_, **__: x
    with pytest.raises(UserError, match=r"Nothing was captured from 'blocks\.1\.attn'"):
        analysis.attention_statistics(model, [X])


def test_unknown_models_of_transformers_are_refused() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=64
    )
    with pytest.raises(UserError, match="'vit_mae' are not known"):
        analysis.attention_statistics(transformers.ViTMAEModel(config), [X])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers"), [("vit_base_patch16_224", 12), ("swinv2_base_window8_256", 24), ("convnext_base", 36)]
)
def test_models_of_full_size_run_through(name: str, layers: int) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name)
    side = 256 if "256" in name else 224
    x = torch.randn(4, 3, side, side)
    if name == "convnext_base":
        assert len(analysis.kernel_statistics(model).layers) == layers
    else:
        found = analysis.attention_statistics(model, x.split(2))
        assert len(found.layers) == layers
        assert all(np.isfinite(layer.kl).all() for layer in found.layers)
    assert analysis.cka(model, None, x.split(2)).values.shape == (layers, layers)
    assert len(analysis.layer_statistics(model, x.split(2), examples="pooled").layers) == layers


@pytest.mark.slow
def test_transformers_vit_of_full_size_runs_through() -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.ViTModel(transformers.ViTConfig())
    x = torch.randn(2, 3, 224, 224)
    assert len(analysis.attention_statistics(model, [x]).layers) == 12
    assert analysis.attention_maps(model, x, [12]).layers[0].of((13, 13)).shape == (2, 12, 14, 14)
