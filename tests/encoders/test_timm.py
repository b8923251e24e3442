"""Any timm model as an encoder that gives features, behind the same contract."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from mimkit import encoders
from mimkit.encoders import Encoder
from mimkit.errors import UserError
from mimkit.masks import from_hidden

MODELS = [
    "resnet10t",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
    "hiera_tiny_224",
]


def encoder_of(name: str, size: tuple[int, int], channels: int = 3) -> Encoder:
    return encoders.build(f"timm:{name}", size=size, channels=channels).eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("size", "channels"), [((64, 64), 3), ((32, 96), 1), ((64, 96), 5)])
def test_levels_have_the_strides_and_channels_that_are_stated(
    name: str, size: tuple[int, int], channels: int
) -> None:
    if name.startswith(("swin", "hiera")):
        size = (224, 224)  # windows that want multiples of 7, and units that want multiples of 32
    encoder = encoder_of(name, size, channels)
    with torch.no_grad():
        features = encoder(torch.randn(2, channels, *size), layers=(1, encoder.depth))
    strides = [level.stride[0] for level in encoder.levels]
    assert strides == sorted(set(strides)) and encoder.unit == encoder.levels[-1].stride
    for x, level in zip(features.levels, encoder.levels, strict=True):
        assert x.shape == (2, size[0] // level.stride[0], size[1] // level.stride[1], level.channels)
    assert set(features.layers) == {1, encoder.depth}
    assert features.pooled("mean").shape == (2, encoder.levels[-1].channels)
    if name.startswith("vit"):
        assert features.pooled("cls").shape == (2, 192)


def test_it_cannot_hide_and_says_so() -> None:
    encoder = encoder_of("resnet10t", (64, 64))
    mask = from_hidden(torch.tensor([[[True, False], [False, False]]]), (32, 32))
    with pytest.raises(UserError, match="cannot drop hidden cells; it can nothing of the kind"):
        encoder(torch.zeros(1, 3, 64, 64), mask)


def test_what_it_cannot_do_is_refused_in_a_sentence() -> None:
    encoder = encoder_of("vit_tiny_patch16_224", (32, 32))
    with pytest.raises(UserError, match=r"3 channels.*data\.channels"):
        encoder(torch.zeros(1, 1, 32, 32))
    with pytest.raises(UserError, match="does not take images of 48 x 48 pixels"):
        encoder(torch.zeros(1, 3, 48, 48))
    with pytest.raises(UserError, match="see padding"):
        encoder(torch.zeros(1, 3, 32, 32), sizes=torch.tensor([[32, 20]]))


def test_unknown_models_and_tags_are_refused() -> None:
    with pytest.raises(UserError, match="Did you mean 'resnet50'"):
        encoders.build("timm:resnt50")
    with pytest.raises(UserError, match="Invalid pretrained tag"):
        encoders.build("timm:resnet50.nonsense")


@pytest.mark.parametrize("name", [*MODELS, "efficientnet_b0", "vgg11"])
def test_layers_for_learning_rates_are_those_of_timms_own_optimiser_groups(name: str) -> None:
    whole = timm.create_model(name, num_classes=7)
    scales = {
        id(parameter): group["lr_scale"]
        for group in param_groups_layer_decay(whole, layer_decay=0.5)
        for parameter in group["params"]
    }
    theirs = {key: scales[id(parameter)] for key, parameter in whole.named_parameters()}
    encoder = encoders.build(f"timm:{name}")
    ours = {
        key.removeprefix("model."): 0.5 ** (encoder.deepest - encoder.depth_of(key))
        for key, _ in encoder.named_parameters()
    }
    assert min(ours.values()) == min(theirs.values()) < 0.1  # the stem
    head = set(theirs) - set(ours)
    assert {theirs[key] for key in head} == {1.0}
    assert ours == {key: scale for key, scale in theirs.items() if key in ours}


def test_a_model_that_states_no_order_of_layers_says_what_to_leave_out() -> None:
    encoder = encoder_of("resnet10t", (64, 64))
    encoder.model.group_matcher = None
    with pytest.raises(UserError, match=r"ResNet states no order.*layer_decay=null"):
        encoder.depth_of("model.conv1.weight")


def test_drop_path_and_checkpointing_reach_timm_or_are_said_to_have_no_effect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = {"drop_path": 0.2, "checkpointing": True}
    vit = encoders.build("timm:vit_tiny_patch16_224", size=(32, 32), **options)
    assert vit.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2) and vit.model.grad_checkpointing
    assert not caplog.records
    encoders.build("timm:vgg11", **options)
    assert "vgg11 has no drop path" in caplog.text and "no activation checkpointing" in caplog.text
