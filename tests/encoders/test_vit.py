"""What is particular to the plain ViT: its options, its start, its named sizes."""

import pytest
import torch

from mimkit import encoders
from mimkit.encoders.vit import VARIANTS, ViT
from mimkit.errors import UserError
from mimkit.ops.positions import sincos


def vit(**options: object) -> ViT:
    return ViT(**{"width": 16, "depth": 2, "heads": 2, "patch": (4, 4), "size": (16, 24)} | options)


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "count"), [("vit_base", 85_798_656), ("vit_large", 303_301_632), ("vit_huge", 630_764_800)]
)
def test_named_sizes_have_the_published_number_of_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        assert parameters(encoders.build(name)) == count


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("patch", [8, 14, 16])
def test_every_size_comes_with_every_patch(name: str, patch: int) -> None:
    with torch.device("meta"):
        encoder = encoders.build(name, size=(224, 112), patch=(patch, patch))
    assert encoder.unit == (patch, patch) and encoder.levels[0].stride == (patch, patch)
    assert encoder.pos_embed.shape[1] == 1 + (224 // patch) * (112 // patch)


def test_patches_need_not_be_square() -> None:
    encoder = vit(patch=(2, 6))
    assert encoder(torch.randn(1, 3, 16, 24)).levels[0].shape == (1, 8, 4, 16)


def test_sincos_positions_are_fixed_and_learned_ones_train() -> None:
    assert not vit().pos_embed.requires_grad
    torch.testing.assert_close(vit().pos_embed.data, sincos(16, (4, 6), class_row=True).float())
    assert vit(positions="learned").pos_embed.requires_grad
    with pytest.raises(UserError, match="known are 'sincos' and 'learned'"):
        vit(positions="rotary")


def test_the_table_keeps_the_default_precision() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(vit().pos_embed, sincos(16, (4, 6), class_row=True))
    finally:
        torch.set_default_dtype(torch.float32)


def test_without_a_class_token_there_is_no_prefix() -> None:
    encoder = vit(class_token=False)
    assert encoder(torch.randn(1, 3, 16, 24)).prefix is None
    assert "cls_token" not in dict(encoder.named_parameters())


def test_the_start_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    encoder = vit(width=192, heads=3)
    qkv, kernel = encoder.blocks[0].attn.qkv, encoder.patch_embed.proj
    limit = (6 / (4 * 192)) ** 0.5  # query, key and value as one matrix
    assert 0.99 * limit < qkv.weight.abs().max() <= limit and not qkv.bias.any()
    assert kernel.weight.abs().max() <= (6 / (192 + 48)) ** 0.5
    assert 0 < kernel.bias.abs().max() <= 48**-0.5  # torch's own
    assert encoder.cls_token.std().item() == pytest.approx(0.02, rel=0.2)


def test_patches_can_be_run_in_any_order_and_number() -> None:
    encoder = vit().eval()
    images = torch.randn(1, 3, 16, 24)
    index = torch.tensor([[5, 0, 17]])
    shuffled, _ = encoder.run(encoder.patch_embed(images, index), encoder.positions((4, 6), index))
    ascending, _ = encoder.run(
        encoder.patch_embed(images, index.sort().values), encoder.positions((4, 6), index.sort().values)
    )
    torch.testing.assert_close(shuffled[:, 1:][:, index[0].argsort()], ascending[:, 1:])


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'vit_base'"):
        encoders.build("vit_bse")
