"""Attention maps for the page: whatever the models, they stay within the bound, and what is kept is even."""

import base64
import zlib

import numpy as np
import pytest
import torch

from mimkit.analysis import viewer
from mimkit.analysis.maps import AttentionMaps, LayerMaps
from mimkit.analysis.viewer import BYTES, Choice, Layout


def cost(layers: list[Layout], choice: Choice) -> int:
    kept = 0
    for number, step in zip(choice.layers, choice.steps, strict=True):
        height, width = layers[number].grid
        queries = len(range(0, height, step)) * len(range(0, width, step))
        kept += layers[number].heads * queries * height * width
    return kept * choice.images


@pytest.mark.parametrize("models", [1, 2, 4])
@pytest.mark.parametrize(
    "layers",
    [
        [Layout(12, (14, 14))] * 12,
        [Layout(16, (16, 16))] * 32,
        [Layout(3, (2, 2))] * 3,
        [Layout(16, (28, 28))] * 24,
        [Layout(4, (64, 64))] * 2
        + [Layout(8, (32, 32))] * 2
        + [Layout(16, (16, 16))] * 6
        + [Layout(32, (8, 8))] * 2,
    ],
)
def test_all_models_together_stay_within_the_bound(layers: list[Layout], models: int) -> None:
    choice = viewer.choose(layers, models)
    assert choice is not None
    assert models * cost(layers, choice) <= BYTES
    assert all(layers[number].grid[0] <= 28 for number in choice.layers)


def test_the_last_layer_is_always_there() -> None:
    choice = viewer.choose([Layout(12, (14, 14))] * 12, 4)
    assert choice is not None and choice.layers[-1] == 11


def test_maps_that_are_all_too_fine_are_left_out() -> None:
    assert viewer.choose([Layout(4, (56, 56))] * 4, 1) is None


def test_packed_maps_come_back_to_a_part_in_a_hundred_and_leave_prefix_tokens_out() -> None:
    torch.manual_seed(0)
    attention = torch.randn(1, 2, 1 + 6, 1 + 6).mul(2).softmax(-1)
    maps = AttentionMaps("m", (LayerMaps("a", (2, 3), 1, attention),))
    packed = viewer.pack("m", maps, Choice((4,), (1,), 1), [np.zeros((4, 6, 3))], ["x.png"])
    (entry,) = packed["layers"]
    assert (entry["layer"], entry["heads"], entry["grid"], entry["queries"]) == (5, 2, [2, 3], [2, 3])
    raw = zlib.decompress(base64.b64decode(entry["data"][0]))
    top, roots = np.frombuffer(raw, "<f4", 12), np.frombuffer(raw, np.uint8, offset=48).reshape(12, 6)
    own = attention[0, :, 1:, 1:]
    want = (own / own.sum(-1, keepdim=True)).reshape(12, 6).numpy()
    assert np.allclose(top, want.max(1))
    assert np.allclose(top[:, None] * (roots / 255) ** 2, want, atol=0.005)
