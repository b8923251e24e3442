"""Layers are blocks in every verb, whatever the network counts itself, and inner ones are read as they leave theirs."""

import pytest
import torch
from torch import Tensor

from mimkit import encoders
from mimkit.analysis.layers import block_names, by_blocks
from mimkit.encoders import Encoder

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def encoder_of(name: str) -> Encoder:
    torch.manual_seed(0)
    return encoders.build(name, size=(64, 64)).eval()


@pytest.mark.parametrize(
    ("name", "own", "blocks"),
    [
        ("timm:swin_tiny_patch4_window7_224", 4, 12),
        ("timm:convnext_atto", 4, 12),
        ("timm:vit_tiny_patch16_224", 12, 12),
        ("timm:cait_xxs24_224", 24, 24),
        ("mcmae_tiny", 10, 12),
    ],
)
@torch.no_grad()
def test_layers_are_blocks_and_the_last_one_stands_behind_the_norm(name: str, own: int, blocks: int) -> None:
    encoder = encoder_of(name)
    counted = by_blocks(encoder)
    assert (encoder.depth, counted.depth, len(block_names(encoder))) == (own, blocks, blocks)
    found, plain = counted(X, layers=range(1, blocks + 1)), encoder(X)
    assert set(found.layers) == set(range(1, blocks + 1))
    assert torch.equal(found.pooled("mean"), plain.pooled("mean"))
    assert found.layers[1].levels[0].shape[1] >= found.levels[-1].shape[1]


@torch.no_grad()
def test_inner_layers_of_a_foreign_vit_are_read_before_its_norm_as_ours_are() -> None:
    encoder = encoder_of("timm:vit_tiny_patch16_224")
    seen: list[Tensor] = []
    encoder.model.blocks[4].register_forward_hook(lambda _, __, x: seen.append(x))
    found = by_blocks(encoder)(X, layers=[5]).layers[5]
    assert torch.equal(found.pooled("cls"), seen[0][:, 0])
    torch.testing.assert_close(found.pooled("mean"), seen[0][:, 1:].mean(1))


def test_own_encoders_whose_layers_are_blocks_stay_as_they_are() -> None:
    encoder = encoder_of("vit_tiny")
    assert by_blocks(encoder) is encoder


@pytest.mark.parametrize("name", ["vgg11", "twins_pcpvt_small", "hiera_tiny_224"])
def test_a_network_without_known_blocks_keeps_its_stages_with_a_word(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="mimkit")
    encoder = encoder_of(f"timm:{name}")
    assert by_blocks(encoder) is encoder
    assert f"Its {encoder.depth} stages are the layers." in caplog.text
