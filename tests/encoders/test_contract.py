"""The Encoder contract, for every encoder that mimkit has of its own and every form of it, its family's table cut in
depth and width; and, without arithmetic, for the sizes as they are.
"""

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mimkit import encoders
from mimkit.encoders import Encoder, Features
from mimkit.encoders.mcmae import VARIANTS
from mimkit.encoders.mcmae_forms import FORMS
from mimkit.errors import UserError
from mimkit.masks import Mask, RandomMasker, collate, from_hidden

SIZES = [(64, 64), (32, 96), (56, 42)]
CHANNELS = [1, 3, 5]
FORMED = [f"mcmae_tiny/{form}" for form in FORMS]
every = pytest.mark.parametrize("name", [*encoders.names(), *FORMED])
hiding = pytest.mark.parametrize("name", encoders.names())
one_a_family = pytest.mark.parametrize(
    "name", {module: name for name, module in encoders.FAMILIES.items()}.values()
)


@pytest.fixture(autouse=True)
def small_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks, eight channels a head: the contract does not depend on it."""
    for name, module_name in encoders.FAMILIES.items():
        table = importlib.import_module(module_name).VARIANTS
        monkeypatch.setitem(table, name, small(table[name]))


def small(row: Any) -> Any:
    """The row with few blocks and narrow stages."""
    if hasattr(row, "widths"):
        front = row.widths[:-1]
        return row._replace(depths=(1,) * len(front) + (2,), widths=(*[8] * len(front), 8 * row.heads))
    return row._replace(depth=2, width=8 * row.heads)


def encoder_of(name: str, size: tuple[int, int] = (64, 64), **options: Any) -> Encoder:
    torch.manual_seed(0)
    name, _, form = name.partition("/")
    if form:
        options |= {"form": form, "padding": "masked"}
    if form in ("detection", "vitdet"):
        options |= {"window": (2, 2), "global_blocks": (1,)}
    encoder = encoders.build(name, size=size, **options).double().eval()
    for parameter in encoder.parameters():  # away from a start at which tokens and biases are zero
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return encoder


def images_of(encoder: Encoder, size: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.randn(batch, encoder.channels, *size, dtype=torch.float64)


def masks_of(encoder: Encoder, size: tuple[int, int], batch: int = 2, ratio: float = 0.5) -> Mask:
    grid = tuple(-(-side // cell) for side, cell in zip(size, encoder.unit, strict=True))
    masker = RandomMasker(ratio, encoder.unit)
    return collate([masker(np.random.default_rng(i), grid) for i in range(batch)])


def pixels_hidden(mask: Mask, size: tuple[int, int]) -> Tensor:
    """Bool (B, H, W)."""
    return mask.at((1, 1))[:, : size[0], : size[1]]


def tensors_of(features: Features) -> list[Tensor]:
    own = [*features.levels, *([] if features.prefix is None else [features.prefix])]
    return own + [x for layer in features.layers.values() for x in tensors_of(layer)]


def assert_same(a: Features, b: Features) -> None:
    for x, y in zip(tensors_of(a), tensors_of(b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


@every
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_levels_have_the_strides_and_channels_that_are_stated(
    name: str, size: tuple[int, int], channels: int
) -> None:
    encoder = encoder_of(name, size, channels=channels)
    features = encoder(images_of(encoder, size))
    assert len(features.levels) == len(encoder.levels)
    for x, level in zip(features.levels, encoder.levels, strict=True):
        grid = tuple(-(-side // stride) for side, stride in zip(size, level.stride, strict=True))
        assert x.shape == (2, *grid, level.channels)
    assert features.map(-1).shape == (2, encoder.levels[-1].channels, *grid)
    assert torch.equal(features.map(-1).movedim(1, -1), features.levels[-1])


@every
def test_a_grid_that_the_encoder_was_not_built_for_is_taken_too(name: str) -> None:
    encoder = encoder_of(name, (64, 64))
    assert encoder(images_of(encoder, (48, 112))).levels[-1].shape[:1] == (2,)


@hiding
@pytest.mark.parametrize("size", SIZES)
def test_dropping_reads_no_hidden_pixel_and_gives_the_unit_layout(name: str, size: tuple[int, int]) -> None:
    encoder = encoder_of(name, size)
    images, mask = images_of(encoder, size).requires_grad_(), masks_of(encoder, size)
    features = encoder(images, mask)
    for x, level in zip(features.levels, encoder.levels, strict=True):
        inner = [cell // stride for cell, stride in zip(encoder.unit, level.stride, strict=True)]
        assert x.shape == (2, mask.visible.shape[1], *inner, level.channels)
    sum(x.square().sum() for x in tensors_of(features)).backward()
    hidden = pixels_hidden(mask, size)[:, None].expand_as(images)
    assert not images.grad[hidden].any() and (images.grad[~hidden] != 0).all()


@hiding
def test_features_of_dropped_cells_are_zero_in_a_map(name: str) -> None:
    encoder = encoder_of(name)
    mask = masks_of(encoder, (64, 64))
    features = encoder(images_of(encoder, (64, 64)), mask)
    for i, level in enumerate(encoder.levels):
        hidden = mask.at(level.stride)[:, None].expand(-1, level.channels, -1, -1)
        assert not features.map(i)[hidden].any() and (features.map(i)[~hidden] != 0).any()


@every
@pytest.mark.parametrize("masked", [False, True])
def test_an_image_is_answered_alike_alone_and_in_any_place_of_a_batch(name: str, masked: bool) -> None:
    encoder = encoder_of(name)
    if masked and not encoder.hides_by:
        pytest.skip("it hides nothing")
    images, mask = images_of(encoder, (64, 64), 3), masks_of(encoder, (64, 64), 3)
    whole = encoder(images, mask if masked else None)
    order = torch.tensor([2, 0, 1])
    for rows in (order, torch.tensor([1])):
        part = Mask(mask.hidden[rows], mask.unit, mask.visible[rows]) if masked else None
        got = encoder(images[rows], part)
        for x, y in zip(tensors_of(got), tensors_of(whole), strict=True):
            torch.testing.assert_close(x, y[rows], rtol=1e-9, atol=1e-9)


@hiding
def test_replacing_hides_the_pixels_behind_a_token_that_learns(name: str) -> None:
    encoder = encoder_of(name)
    if "replace" not in encoder.hides_by:
        pytest.skip("it cannot replace")
    token = torch.randn(encoder.token_width, dtype=torch.float64, requires_grad=True)
    images, mask = images_of(encoder, (64, 64)).requires_grad_(), masks_of(encoder, (64, 64))
    features = encoder(images, mask, token)
    assert [x.shape for x in features.levels] == [x.shape for x in encoder(images).levels]
    sum(x.square().sum() for x in tensors_of(features)).backward()
    hidden = pixels_hidden(mask, (64, 64))[:, None].expand_as(images)
    assert not images.grad[hidden].any() and (images.grad[~hidden] != 0).any() and (token.grad != 0).all()


@hiding
def test_a_mask_of_coarser_cells_replaces_all_tokens_of_a_cell(name: str) -> None:
    encoder = encoder_of(name)
    if "replace" not in encoder.hides_by:
        pytest.skip("it cannot replace")
    side = 2 * encoder.unit[0]
    size, token = (2 * side, 2 * side), torch.zeros(encoder.token_width, dtype=torch.float64)
    coarse = Mask(torch.tensor([[[True, False], [False, True]]]), (side, side), torch.tensor([[1, 2]]))
    fine = Mask(coarse.at(encoder.unit), encoder.unit, torch.tensor([[2, 3, 6, 7, 8, 9, 12, 13]]))
    images = images_of(encoder, size, 1)
    assert_same(encoder(images, coarse, token), encoder(images, fine, token))


@every
@pytest.mark.parametrize("layers", [(), (1,), (1, 2)])
def test_inner_layers_come_on_request_and_change_nothing(name: str, layers: tuple[int, ...]) -> None:
    encoder = encoder_of(name)
    images = images_of(encoder, (64, 64))
    features = encoder(images, layers=layers)
    assert set(features.layers) == set(layers)
    assert_same(Features(features.levels, None, features.prefix), encoder(images))
    for inner in features.layers.values():
        assert inner.map().shape[0] == 2 and inner.pooled("mean").shape[0] == 2


@every
@pytest.mark.parametrize("masked", [False, True])
def test_padding_never_influences_a_valid_output(name: str, masked: bool) -> None:
    """Each padded image is answered as it is alone, whatever stands in its padding."""
    encoder = encoder_of(name, (64, 64))
    if masked and not encoder.hides_by:
        pytest.skip("it hides nothing")
    for part, parameter in encoder.named_parameters():
        if part.endswith((".table", ".rows", ".columns")) and "windowed" not in part:
            torch.nn.init.zeros_(
                parameter
            )  # offsets of the whole map are stretched to the padded grid, as published
    cell = encoder.unit[0]
    true = [(4 * cell, 2 * cell), (3 * cell - 3, 4 * cell), (2 * cell, 3 * cell - 5)]
    full = (4 * cell, 4 * cell)
    images = images_of(encoder, full, 3)
    mask = _masks_within(encoder, true, full) if masked else None
    padded = encoder(images, mask, sizes=torch.tensor(true), layers=(1,))
    for i, (h, w) in enumerate(true):
        alone = encoder(images[i : i + 1, :, :h, :w], _own_mask(mask, i, (h, w)), layers=(1,))
        for got, want in ((padded, alone), (padded.layers[1], alone.layers[1])):
            for x, y in zip(got.levels, want.levels, strict=True):
                inside = x[i : i + 1] if masked else x[i : i + 1, : y.shape[1], : y.shape[2]]
                torch.testing.assert_close(inside, y, rtol=1e-9, atol=1e-9)
            if want.prefix is not None:
                torch.testing.assert_close(got.prefix[i : i + 1], want.prefix, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(got.pooled("mean")[i], want.pooled("mean")[0], rtol=1e-9, atol=1e-9)


def _masks_within(encoder: Encoder, true: list[tuple[int, int]], full: tuple[int, int]) -> Mask:
    """Three visible cells inside each image, none in the padding."""
    grid = tuple(side // cell for side, cell in zip(full, encoder.unit, strict=True))
    hidden = torch.ones(len(true), *grid, dtype=torch.bool)
    for i, (h, w) in enumerate(true):
        rows, columns = -(-h // encoder.unit[0]), -(-w // encoder.unit[1])
        for cell in (0, columns + 1, (rows - 1) * columns + columns - 1):
            hidden[i, cell // columns, cell % columns] = False
    return from_hidden(hidden, encoder.unit)


def _own_mask(mask: Mask | None, i: int, size: tuple[int, int]) -> Mask | None:
    if mask is None:
        return None
    rows, columns = (-(-side // cell) for side, cell in zip(size, mask.unit, strict=True))
    return from_hidden(mask.hidden[i : i + 1, :rows, :columns], mask.unit)


@every
def test_pooling_is_the_mean_of_the_positions_or_the_class_token(name: str) -> None:
    encoder = encoder_of(name)
    features = encoder(images_of(encoder, (64, 64)))
    torch.testing.assert_close(features.pooled("mean"), features.map().flatten(2).mean(2))
    if features.prefix is None:
        with pytest.raises(UserError, match="no class token"):
            features.pooled("cls")
    else:
        assert torch.equal(features.pooled("cls"), features.prefix[:, 0])
    with pytest.raises(UserError, match="known are 'mean' and 'cls'"):
        features.pooled("max")


@hiding
def test_images_and_masks_that_do_not_belong_are_refused_in_a_sentence(name: str) -> None:
    encoder = encoder_of(name)
    with pytest.raises(UserError, match=r"3 channels.*data\.channels"):
        encoder(torch.zeros(2, 4, 64, 64))
    with pytest.raises(UserError, match="channels"):
        encoder(torch.zeros(3, 64, 64))
    other = masks_of(encoder, (64, 128))
    with pytest.raises(UserError, match="does not belong to images of"):
        encoder(images_of(encoder, (64, 64)), other)
    cell = encoder.unit[0] // 2
    with pytest.raises(UserError, match="dropped in units"):
        fine = Mask(torch.zeros(2, 8, 8, dtype=torch.bool), (cell, cell), torch.arange(64).expand(2, 64))
        encoder(images_of(encoder, (8 * cell, 8 * cell)), fine)


@every
def test_activation_checkpointing_gives_the_same_gradients(name: str) -> None:
    gradients = []
    for on in (False, True):
        encoder = encoder_of(name, checkpointing=on, drop_path=0.5).train()
        torch.manual_seed(1)
        images = images_of(encoder, (64, 64), 4)
        mask = masks_of(encoder, (64, 64), 4) if encoder.hides_by else None
        encoder(images, mask).map().square().sum().backward()
        gradients.append({n: p.grad for n, p in encoder.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for parameter in gradients[0]:
        torch.testing.assert_close(gradients[0][parameter], gradients[1][parameter], rtol=1e-9, atol=1e-12)


@every
def test_every_parameter_has_a_depth_and_depths_ascend_through_the_network(name: str) -> None:
    encoder = encoder_of(name, layer_scale=0.1)
    depths = {parameter: encoder.depth_of(parameter) for parameter, _ in encoder.named_parameters()}
    # the norm behind the blocks, or tables that blocks share
    behind = not encoder.ends_raw or any(part.startswith("relative.") for part in depths)
    assert set(depths.values()) == set(range(encoder.depth + 1 + behind))
    assert encoder.depth_of("head.weight") == encoder.depth + 1


@every
def test_attention_modules_are_named_with_their_geometry(name: str) -> None:
    encoder = encoder_of(name)
    for site in encoder.attentions():
        assert encoder.get_submodule(site.name) is site.module
        assert len(site.stride) == 2 and site.prefix >= 0


@every
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_close(name: str, precision: torch.dtype) -> None:
    encoder = encoder_of(name)
    images = images_of(encoder, (64, 64))
    exact = encoder(images).map()
    encoder.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        rough = encoder(images.float()).map()
    assert (rough.double() - exact).abs().max() < (1e-4 if precision == torch.float32 else 0.2)


@one_a_family
def test_the_encoder_compiles_without_a_graph_break(name: str) -> None:
    encoder = encoder_of(name)
    images = images_of(encoder, (64, 64))
    torch.compiler.reset()
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    for mask in (None, masks_of(encoder, (64, 64))):
        assert_same(compiled(images, mask), encoder(images, mask))


@pytest.fixture
def as_published(small_variants: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of sizes as they stand in the files."""
    monkeypatch.undo()


@pytest.mark.parametrize(
    "name", ["mcmae_small", "mcmae_base", "mcmae_base_star", "mcmae_large", "mcmae_huge"]
)
@pytest.mark.parametrize("form", ["classifier", *FORMS])
def test_the_sizes_as_published_keep_the_contract_on_the_meta_device(
    name: str, form: str, as_published: None
) -> None:
    row = VARIANTS[name]
    with torch.device("meta"):
        encoder = encoders.build(name, size=(96, 160), form=form, channels=4).eval()
        images, mask = torch.zeros(2, 4, 96, 160), masks_of(encoder, (96, 160)).to(torch.device("meta"))
    whole = encoder(images, layers=(1, row.depths[2]))
    assert [x.shape for x in whole.levels] == [
        (2, 96 // s, 160 // s, c) for s, c in zip((4, 8, 16), row.widths, strict=True)
    ]
    assert encoder.depth == row.depths[2] == len(list(encoder.attentions()))
    assert whole.layers[1].levels[-1].shape == whole.levels[-1].shape
    depths = {encoder.depth_of(part) for part, _ in encoder.named_parameters()}
    assert set(range(encoder.depth + 1)) <= depths
    if form != "classifier":
        assert not encoder.hides_by
        return
    shown = encoder(images, mask)
    assert [x.shape for x in shown.levels] == [
        (2, 30, s, s, c) for s, c in zip((4, 2, 1), row.widths, strict=True)
    ]
