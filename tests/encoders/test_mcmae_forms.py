"""MCMAE's forms for dense features: windows against masked global attention, padding, starts, geometry, bad options."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mimkit import encoders
from mimkit.analysis import cost
from mimkit.analysis.attention import attention_statistics
from mimkit.analysis.geometry import windowed
from mimkit.encoders.mcmae import MCMAEEncoder
from mimkit.encoders.mcmae_forms import FORMS, FormBlock, Seen, first_of_groups, last_of_groups
from mimkit.engine.optimiser import layer_decay_groups
from mimkit.errors import UserError
from mimkit.masks import from_hidden
from mimkit.ops import windows
from mimkit.ops.relative import AxisVectors, BiasTable

SMALL = "mcmae:8-12-16x1-1-4x2x2-2-2"
every = pytest.mark.parametrize("form", FORMS)


def made(form: str, size: tuple[int, int] = (64, 96), **options: Any) -> MCMAEEncoder:
    """A small encoder, its windows of 2 x 2 units, its relative positions away from zero."""
    torch.manual_seed(0)
    if form != "segmentation":
        options = {"window": (2, 2), "global_blocks": (1, 3)} | options
    encoder = encoders.build(SMALL, size=size, form=form, **options).double().eval()
    for name, parameter in encoder.named_parameters():
        if "relative" in name:
            nn.init.normal_(parameter)
    return encoder


def photos(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, dtype=torch.float64)


def test_the_published_global_blocks_follow_from_the_depth() -> None:
    assert first_of_groups(11) == (0, 3, 6, 10) and last_of_groups(11) == (1, 4, 7, 10)
    assert last_of_groups(24) == (5, 11, 17, 23)  # ViTDet's of ViT-L
    assert first_of_groups(1) == (0,) and last_of_groups(2) == (0, 1)


@every
@pytest.mark.parametrize("size", [(64, 96), (48, 80), (56, 42)])
def test_any_size_gives_the_three_levels_and_stores_no_index(form: str, size: tuple[int, int]) -> None:
    encoder, images = made(form), photos(*size)
    levels = encoder(images).levels
    padded = [-(-side // 16) * 16 if FORMS[form].padding == "published" else side for side in size]
    for level, stride, width in zip(levels, (4, 8, 16), (8, 12, 16), strict=True):
        assert level.shape == (2, *(-(-side // stride) for side in padded), width)
    assert not dict(encoder.named_buffers())


@pytest.mark.parametrize("shift", [(0, 0), (1, 2)])
@pytest.mark.parametrize("kind", ["none", "table", "axes"])
def test_a_window_is_global_attention_that_sees_its_window_alone(shift: tuple[int, int], kind: str) -> None:
    grid, window, heads = (4, 9), (2, 3), 2
    own = {"none": None, "table": BiasTable(window, heads), "axes": AxisVectors(window, 4)}[kind]
    block = FormBlock(8, heads, window=window, shift=shift, relative=own).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 36, 8, dtype=torch.float64)
    pairs = windows.pairs(grid, window, shift)
    allowed = None if pairs is None else pairs.repeat(2, 1, 1)[:, None]
    keys = windows.keys(grid, window, shift)
    got = block(x, Seen(grid, None if keys is None else keys.repeat(2, 1, 1).flatten(0, 1), allowed))

    # The same in one: everybody sees everybody, and what is outside the window is hidden
    of_window = windows.partition(torch.arange(36).view(1, *grid, 1), window, shift)[..., 0]  # (W, n)
    region = windows.regions(grid, window, shift)
    bias = torch.full((2, heads, 36, 36), -torch.inf, dtype=torch.float64)
    q = block.attn._heads(block.attn.qkv(block.norm1(x)), 3)[0]
    for cells, part in zip(of_window, region, strict=True):
        seen = part[:, None] == part[None]
        inner = torch.zeros(2, heads, len(cells), len(cells), dtype=torch.float64)
        if kind == "table":
            inner = own(window).expand(2, -1, -1, -1)
        if kind == "axes":
            inner = own(q[:, :, cells], window)
        bias[:, :, cells[:, None], cells[None]] = inner.masked_fill(~seen, -torch.inf)
    y = x + block.attn(block.norm1(x), bias=bias)
    torch.testing.assert_close(got, y + block.mlp(block.norm2(y)))


@pytest.mark.parametrize("form", ["detection", "segmentation"])
def test_padding_of_a_batch_changes_no_valid_output(form: str) -> None:
    encoder, small = made(form), photos(48, 64, batch=1)
    for name, parameter in encoder.named_parameters():
        if name.endswith(".table") and "windowed" not in name:
            nn.init.zeros_(parameter)  # else offsets of the whole map are stretched to the padded grid
    canvas = photos(80, 112)
    canvas[0, :, :48, :64] = small[0]
    together = encoder(canvas, sizes=torch.tensor([[48, 64], [80, 112]]))
    torch.testing.assert_close(together.levels[-1][:1, :3, :4], encoder(small).levels[-1])


@pytest.mark.parametrize("form", ["detection", "segmentation"])
def test_images_of_several_sizes_share_the_bias_of_the_whole_map(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is 403 MB at 64 x 64 units; a copy for each image would make memory grow with the batch."""
    seen: list[torch.Size] = []
    fused = nn.functional.scaled_dot_product_attention

    def overheard(*tensors: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        assert attn_mask is not None
        seen.append(attn_mask.shape)
        return fused(*tensors, attn_mask=attn_mask, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", overheard)
    made(form)(photos(64, 96, batch=3), sizes=torch.tensor([[64, 96], [48, 32], [20, 96]]))
    assert len(seen) == 4 and {shape[0] for shape in seen} == {1}


@pytest.mark.parametrize("form", ["detection", "vitdet"])
def test_gradients_stay_finite_where_whole_windows_are_padding(form: str) -> None:
    encoder = made(form, padding="masked", shifted=True).train()
    features = encoder(photos(80, 80), sizes=torch.tensor([[16, 16], [80, 80]]))
    features.pooled("mean").square().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_published_padding_takes_part() -> None:
    images = photos(40, 56)
    published, masked = made("vitdet"), made("vitdet", padding="masked")
    whole = nn.functional.pad(images, (0, 8, 0, 8))
    torch.testing.assert_close(published(images).levels[-1], published(whole).levels[-1])
    assert not torch.allclose(
        published(whole).levels[-1], masked(whole).levels[-1]
    )  # 3 x 4 units, windows of 2
    sizes = torch.tensor([[40, 56], [40, 56]])
    torch.testing.assert_close(published(whole, sizes=sizes).levels[-1], published(whole).levels[-1])


@every
def test_pre_training_starts_a_form_that_first_computes_as_it_did(form: str) -> None:
    plain = encoders.build(SMALL, size=(64, 96)).double().eval()
    options = {} if form == "segmentation" else {"window": (4, 6), "global_blocks": ()}
    eps = {"eps": 1e-6, "conv_eps": 1e-5}
    if form == "vitdet":
        options |= {"table": (4, 6)}
    dense = encoders.build(SMALL, size=(64, 96), form=form, **options, **eps).double().eval()
    missing, left = dense.load_state_dict(plain.state_dict(), strict=False)
    assert not left and all("relative" in name or ".ls" in name for name in missing)
    images = photos(64, 96)
    torch.testing.assert_close(dense(images).levels, plain(images).levels)


def test_shifted_windows_alternate_as_the_paper_has_them() -> None:
    encoder = encoders.build(
        "mcmae:8-8-8x1-1-11x2", size=(112, 112), form="detection", window=(7, 7), shifted=True
    )
    sites = list(encoder.attentions())
    assert [site.window for site in sites] == [None if i in (0, 3, 6, 10) else (7, 7) for i in range(11)]
    assert [site.shift for site in sites if site.window] == [None, (3, 3)] * 3 + [None]


def test_the_analyses_know_windows_and_shifts() -> None:
    encoder = made("detection", shifted=True).float()
    found = attention_statistics(encoder, [photos(64, 96).float()])
    kinds = [(layer.window, layer.shift) for layer in found.layers]
    assert kinds == [((2, 2), None), (None, None), ((2, 2), (1, 1)), (None, None)]
    assert found.layers[2].distance.max() < windowed((4, 6), (16, 16), (2, 2), (1, 1)).distance.max()


@every
def test_recomputed_activations_give_the_same_gradients(form: str) -> None:
    images, grads = photos(64, 96), []
    for checkpointing in (False, True):
        encoder = made(form, checkpointing=checkpointing).train()
        encoder(images).levels[-1].square().sum().backward()
        grads.append(encoder.blocks3[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*grads)


def test_layers_of_relative_positions_are_those_of_their_blocks_and_tables_never_decay() -> None:
    for form, name in (("vitdet", "blocks3.2.relative.rows"), ("segmentation", "blocks3.2.relative.table")):
        encoder = made(form)
        assert encoder.depth_of(name) == 3
        groups = layer_decay_groups(encoder, 0.05, 0.75, encoder.depth_of, encoder.depth + 1)
        (decay,) = {g["weight_decay"] for g in groups for known, _ in g["params"] if known == name}
        assert decay == (0.0 if name.endswith("table") else 0.05)


@every
def test_half_precision_stays_near_single(form: str) -> None:
    encoder, images = made(form).float(), photos(64, 96).float()
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(images).levels[-1]
    exact = encoder(images).levels[-1]
    assert (rough.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


@every
def test_a_form_for_dense_features_hides_nothing(form: str) -> None:
    encoder, hidden = made(form), torch.zeros(1, 4, 6, dtype=torch.bool)
    hidden[:, :2] = True
    with pytest.raises(UserError, match="cannot drop hidden cells"):
        encoder(photos(64, 96, batch=1), from_hidden(hidden, (16, 16)))


@pytest.mark.parametrize(
    ("form", "side", "millions", "gmac"),
    [("detection", 1024, 87.805, 583), ("vitdet", 1024, 84.694, 598), ("segmentation", 512, 85.781, 135)],
)
def test_size_and_cost_are_those_of_the_published_models(
    form: str, side: int, millions: float, gmac: int
) -> None:
    with torch.device("meta"):
        encoder = encoders.build("mcmae_base", size=(side, side), form=form).eval()
    assert cost.parameters(encoder) / 1e6 == pytest.approx(millions, abs=1e-3)
    assert round(cost.encoder_flops(encoder, (side, side)) / 2e9) == gmac


@pytest.mark.parametrize(
    ("form", "options", "said"),
    [
        ("classifier", {"window": (7, 7)}, "attends everywhere and knows no window"),
        ("classifier", {"shifted": True}, "knows no shifted"),
        ("segmentation", {"window": (7, 7)}, "attends everywhere in every block"),
        ("detection", {"global_blocks": (0, 11)}, "no block 11 among the 4"),
        ("detection", {"padding": "none"}, "Unknown padding 'none'"),
        ("detector", {}, "Unknown form 'detector'"),
    ],
)
def test_options_that_do_not_go_together_end_in_a_sentence(form: str, options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        encoders.build(SMALL, size=(64, 64), form=form, **options)


@pytest.mark.parametrize(
    "name", ["mcmae:8-12x1-1-4x2", "mcmae:8-12-15x1-1-4x2", "mcmae:8-12-16x1-0-4x2", "mcmae:x"]
)
def test_numbers_that_make_no_encoder_end_in_a_sentence(name: str) -> None:
    with pytest.raises(UserError, match="is no MCMAE; write mcmae:WIDTHSxDEPTHSxHEADS"):
        encoders.build(name)
