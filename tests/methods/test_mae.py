"""MAE against the published computation written out plainly, and what a picture or an option may and may not do."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mimkit import encoders
from mimkit.data.batch import Batch
from mimkit.encoders.vit import ViT
from mimkit.errors import UserError
from mimkit.masks import Mask, RandomMasker, build_masker, collate, from_hidden
from mimkit.methods.mae import MAE, patch_errors, patch_targets
from mimkit.ops import units

PATCH = (4, 4)


def mae_of(
    size: tuple[int, int] = (24, 16),
    channels: int = 3,
    kind: str = "random",
    decode: float = 1.0,
    class_token: bool = True,
    **options: Any,
) -> MAE:
    torch.manual_seed(0)
    encoder = ViT(16, 2, 2, PATCH, channels, size, class_token=class_token)
    model = MAE(encoder, build_masker(kind, 0.6, PATCH, decode), size, 24, 2, 3, **options).double().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def images_of(model: MAE, size: tuple[int, int] = (24, 16), batch: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, model.encoder.channels, *size, generator=generator, dtype=torch.float64)


def batch_of(images: Tensor, mask: Mask) -> Batch:
    return Batch(images, torch.arange(len(images)), mask)


def published_prediction(model: MAE, images: Tensor, mask: Mask) -> Tensor:
    """(B, N, values): every patch embedded, visible ones encoded, all decoded in raster order, as published."""
    encoder, decoder = model.encoder, model.decoder
    rows = encoder.pos_embed[:, encoder.prefix_tokens :]
    patches = units.patchify(images, PATCH)
    kernel = encoder.patch_embed.proj
    embedded = patches @ kernel.weight.permute(0, 2, 3, 1).flatten(1).T + kernel.bias + rows
    tokens = torch.stack([x[visible] for x, visible in zip(embedded, mask.visible, strict=True)])
    if encoder.cls_token is not None:
        first = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(images), 1, -1)
        tokens = torch.cat([first, tokens], dim=1)
    for block in encoder.blocks:
        tokens = block(tokens)
    known = decoder.embed(encoder.norm(tokens))
    prefix = encoder.prefix_tokens
    full = decoder.mask_token.expand(len(images), patches.shape[1], -1).clone()
    for i, visible in enumerate(mask.visible):
        full[i, visible] = known[i, prefix:]
    x = torch.cat([known[:, :prefix], full], dim=1) + decoder.pos_embed[:, 1 - prefix :]
    for block in decoder.blocks:
        x = block(x)
    return decoder.pred(decoder.norm(x))[:, prefix:]


def published_loss(prediction: Tensor, images: Tensor, mask: Mask, norm_pix: bool) -> Tensor:
    target = units.patchify(images, PATCH)
    if norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    errors = (prediction - target).square().mean(-1)
    removed = mask.hidden.flatten(1)
    return (errors * removed).sum() / removed.sum()


@pytest.mark.parametrize("kind", ["random", "block", "grid"])
@pytest.mark.parametrize(("size", "channels"), [((16, 16), 3), ((24, 16), 1), ((12, 28), 5)])
@pytest.mark.parametrize("norm_pix", [False, True])
def test_the_loss_is_that_of_the_published_computation(
    kind: str, size: tuple[int, int], channels: int, norm_pix: bool
) -> None:
    model = mae_of(size, channels, kind, norm_pix=norm_pix)
    images = images_of(model, size)
    mask = model.draw_mask(images, 1)
    prediction = published_prediction(model, images, mask)
    torch.testing.assert_close(model.predict_all(images, mask), prediction)
    torch.testing.assert_close(model.predict(images, mask), units.take(prediction, mask.decoded))
    loss = model(batch_of(images, mask))
    torch.testing.assert_close(loss.total, published_loss(prediction, images, mask, norm_pix))


def test_an_encoder_without_class_token_serves_too() -> None:
    model = mae_of(class_token=False)
    images = images_of(model)
    mask = model.draw_mask(images, 0)
    torch.testing.assert_close(model.predict_all(images, mask), published_prediction(model, images, mask))


def test_decoding_a_share_is_the_loss_on_the_chosen_patches_when_the_decoder_sees_only_those() -> None:
    model = mae_of(decode=0.5)
    images = images_of(model)
    mask = model.draw_mask(images, 0)
    hidden = int(mask.hidden[0].sum())
    assert mask.decoded.shape[1] == round(0.5 * hidden) < hidden

    decoder, features = model.decoder, model.encoder(images, mask)
    rows = decoder.pos_embed[0]
    errors = []
    for i in range(len(images)):  # one image at a time, tokens laid out by hand
        known = decoder.embed(torch.cat([features.prefix[i], features.levels[0][i].flatten(0, 2)]))
        places = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + mask.visible[i]])
        asked = decoder.mask_token[0] + rows[1 + mask.decoded[i]]
        x = torch.cat([known + rows[places], asked])[None]
        for block in decoder.blocks:
            x = block(x)
        predicted = decoder.pred(decoder.norm(x))[:, len(known) :]
        target, _, _ = patch_targets(units.patchify(images[i : i + 1], PATCH, mask.decoded[i : i + 1]))
        errors.append((predicted - target).square().mean(-1))
    torch.testing.assert_close(model(batch_of(images, mask)).total, torch.cat(errors).mean())


def test_the_loss_reads_no_hidden_pixel_but_as_target() -> None:
    model = mae_of(norm_pix=False)
    images = images_of(model).requires_grad_()
    mask = model.draw_mask(images.detach(), 0)
    model.predict(images, mask).square().sum().backward()
    hidden = mask.at((1, 1))[:, None].expand_as(images)
    assert not images.grad[hidden].any() and (images.grad[~hidden] != 0).all()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from(["random", "block", "grid"]), st.booleans(), st.floats(0.2, 1.0)
)
def test_the_honest_picture_knows_nothing_hidden_and_keeps_what_is_visible(
    seed: int, kind: str, norm_pix: bool, decode: float
) -> None:
    model = mae_of(kind=kind, norm_pix=norm_pix, decode=decode)
    images = images_of(model, seed=seed)
    mask = model.draw_mask(images, seed)
    shown = model.reconstruct(images, mask)
    hidden = mask.at((1, 1))[:, None]
    assert torch.equal(shown.hidden, hidden) and torch.equal(shown.original, images)
    visible = ~hidden.expand_as(images)
    assert torch.equal(shown.pasted[visible], images[visible])

    changed = torch.where(hidden, 10 * torch.randn_like(images), images)
    assert torch.equal(model.reconstruct(changed, mask).pasted, shown.pasted)
    if not norm_pix:
        assert shown.leaked is None
    else:
        assert torch.equal(shown.leaked[visible], images[visible])
        assert not torch.equal(model.reconstruct(changed, mask).leaked, shown.leaked)


def test_the_leaking_picture_undoes_the_normalisation_with_the_true_statistics() -> None:
    model = mae_of()
    images = images_of(model)
    mask = model.draw_mask(images, 0)
    leaked = units.patchify(model.reconstruct(images, mask).leaked, PATCH, mask.decoded)
    truth = units.patchify(images, PATCH, mask.decoded)
    got, _, _ = patch_targets(truth)
    wanted = model.predict(images, mask) * (truth.var(-1, keepdim=True) + 1e-6).sqrt() + truth.mean(
        -1, keepdim=True
    )
    torch.testing.assert_close(leaked, wanted)
    assert got.shape == truth.shape


def test_pictures_show_every_hidden_patch_although_training_decodes_a_share() -> None:
    half, whole = mae_of(decode=0.5, norm_pix=False), mae_of(norm_pix=False)
    images = images_of(half)
    mask = half.draw_mask(images, 0)
    assert mask.predict is not None
    assert torch.equal(half.reconstruct(images, mask).pasted, whole.reconstruct(images, mask).pasted)


def test_targets_are_normalised_by_the_unbiased_deviation_of_all_channels() -> None:
    patches = torch.randn(2, 3, 48, dtype=torch.float64)
    target, mean, std = patch_targets(patches)
    torch.testing.assert_close(std, (patches.var(-1, keepdim=True) + 1e-6).sqrt())
    torch.testing.assert_close(target * std + mean, patches)


def test_a_floor_on_the_deviation_keeps_constant_patches_from_becoming_noise() -> None:
    patches = torch.randn(1, 2, 48, dtype=torch.float64)
    patches[0, 0] = 0.3 + 1e-3 * patches[0, 0]
    plain, floored = (patch_targets(patches, floor)[0] for floor in (0.0, 0.1))
    assert plain[0, 0].std() > 0.7 and floored[0, 0].std() < 0.02
    assert torch.equal(plain[0, 1], floored[0, 1])
    losses = []
    for floor in (0.0, 0.1):
        model = mae_of(min_std=floor)
        flat = 1e-3 * images_of(model)
        mask = model.draw_mask(flat, 0)
        losses.append(model(batch_of(flat, mask)).total.item())
        truth = patch_targets(units.patchify(flat, PATCH, mask.decoded), floor)[0]
        assert losses[-1] == pytest.approx(patch_errors(model.predict(flat, mask), truth).mean().item())
    assert losses[0] != losses[1]


def test_losses_are_float32_under_autocast() -> None:
    model = mae_of().float()
    images = images_of(model).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(batch_of(images, model.draw_mask(images, 0)))
    assert loss.total.dtype == torch.float32 and loss.total.isfinite()


def test_masks_for_pictures_depend_on_the_seed_and_the_place_alone() -> None:
    model = mae_of()
    images = images_of(model)
    first, again, other = (model.draw_mask(images, seed).hidden for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(model.draw_mask(images[:1], 3).hidden, first[:1]) and not torch.equal(
        first[0], first[1]
    )
    assert model.draw_mask(images, 3, ratio=0.25).visible.shape[1] == 18


def test_position_tables_are_frozen_and_all_else_trains() -> None:
    model = mae_of()
    assert model.frozen() == {"encoder.pos_embed", "decoder.pos_embed"}
    images = images_of(model)
    model(batch_of(images, model.draw_mask(images, 0))).total.backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == model.frozen()


def test_the_decoder_starts_as_published() -> None:
    torch.manual_seed(0)
    model = MAE(ViT(16, 1, 2, PATCH, size=(16, 16)), RandomMasker(0.75, PATCH), (16, 16), 256, 1, 4)
    qkv = model.decoder.blocks[0].attn.qkv
    limit = math.sqrt(6 / (4 * 256))
    assert 0.99 * limit < qkv.weight.abs().max() <= limit and not qkv.bias.any()
    assert model.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert not model.decoder.pos_embed[:, 0].any()


@pytest.mark.parametrize(
    ("name", "total", "trainable"),
    [
        ("vit_base", 111_907_840, 111_655_680),
        ("vit_large", 329_541_888, 329_239_296),
        ("vit_huge", 657_074_508, 656_613_964),
    ],
)
def test_named_sizes_have_the_published_number_of_parameters(name: str, total: int, trainable: int) -> None:
    with torch.device("meta"):
        encoder = encoders.build(name)
        model = MAE(encoder, RandomMasker(0.75, encoder.unit))
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable


def test_a_few_steps_on_one_batch_lower_the_loss() -> None:
    model = mae_of().train()
    images = images_of(model)
    mask = model.draw_mask(images, 0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = model(batch_of(images, mask)).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_it_compiles_without_a_graph_break() -> None:
    model = mae_of()
    images = images_of(model)
    batch = batch_of(images, model.draw_mask(images, 0))
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch).total, model(batch).total)


def test_an_encoder_that_cannot_leave_patches_out_is_refused() -> None:
    with pytest.raises(UserError, match="such as vit_base"):
        MAE(encoders.build("timm:resnet10t"), RandomMasker(0.75, (32, 32)))


def test_images_and_masks_that_do_not_fit_are_refused() -> None:
    model = mae_of()
    images = images_of(model)
    with pytest.raises(UserError, match="does not belong to images of"):
        model(batch_of(images, model.draw_mask(images_of(model, (16, 24)), 0)))
    with pytest.raises(UserError, match="hides nothing"):
        model(batch_of(images, from_hidden(torch.zeros(3, 6, 4, dtype=torch.bool), PATCH)))
    odd = torch.randn(1, 3, 22, 16, dtype=torch.float64)
    mask = collate([RandomMasker(0.5, PATCH)(np.random.default_rng(0), (6, 4))])
    with pytest.raises(UserError, match="22 x 16 pixels are not a whole number of 4 x 4 patches"):
        model(batch_of(odd, mask))
