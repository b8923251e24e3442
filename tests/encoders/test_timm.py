"""Any timm model as an encoder that gives features, behind the same contract."""

import pytest
import torch

from mimkit import encoders
from mimkit.encoders import Encoder
from mimkit.errors import UserError
from mimkit.masks import from_hidden

MODELS = ["resnet10t", "vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224"]


def encoder_of(name: str, size: tuple[int, int], channels: int = 3) -> Encoder:
    return encoders.build(f"timm:{name}", size=size, channels=channels).eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("size", "channels"), [((64, 64), 3), ((32, 96), 1), ((64, 96), 5)])
def test_levels_have_the_strides_and_channels_that_are_stated(
    name: str, size: tuple[int, int], channels: int
) -> None:
    if name.startswith("swin"):
        size = (224, 224)  # its windows want multiples of 7
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
    with pytest.raises(UserError, match="Layer-wise"):
        encoder.depth_of("model.cls_token")


def test_unknown_models_and_tags_are_refused() -> None:
    with pytest.raises(UserError, match="Did you mean 'resnet50'"):
        encoders.build("timm:resnt50")
    with pytest.raises(UserError, match="Invalid pretrained tag"):
        encoders.build("timm:resnet50.nonsense")
