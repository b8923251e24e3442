"""CKA: invariances, blocks that follow the samples and not the loader, two models, bad input."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mimkit import analysis, encoders
from mimkit.analysis import hsic
from mimkit.analysis.walk import walk
from mimkit.data.batch import Batch
from mimkit.errors import UserError


def one(x: Tensor, y: Tensor, estimator: str = "unbiased") -> float:
    sums = hsic.Sums(estimator)
    sums.add([x], [y])
    return float(sums.ratio([("a", ["x"]), ("b", ["y"])])[0, 0])


def features(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_orthogonal_maps_scaling_and_shifts_change_nothing(estimator: str) -> None:
    x, y = features(30, 8, 0), features(30, 8, 1)
    y = x + y
    turned = 3 * x @ torch.linalg.qr(features(8, 8, 2))[0] + 100
    assert one(x, x, estimator) == pytest.approx(1)
    assert one(x, turned, estimator) == pytest.approx(1)
    assert one(turned, y, estimator) == pytest.approx(one(x, y, estimator))
    assert one(x, y, estimator) == pytest.approx(one(y, x, estimator))


def test_independent_features_have_none_when_unbiased_and_some_when_biased() -> None:
    x, y = features(1000, 10, 0), features(1000, 10, 1)
    assert abs(one(x, y)) < 0.02
    assert 0.003 < one(x, y, "biased") < 0.03


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_both_forms_agree(estimator: str) -> None:
    x, y = features(40, 6, 0), features(40, 5, 1)
    grams = hsic.pairwise([hsic.gram(x)[0]], [hsic.gram(y)[0]], estimator)
    torch.testing.assert_close(hsic.pairwise_features([x], [y], estimator), grams)


def model(seed: int = 0, layers: int = 3) -> encoders.Encoder:
    torch.manual_seed(seed)
    return encoders.build(f"vit:32x{layers}x2", size=(32, 32)).double()


IMAGES = torch.randn(27, 3, 32, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def batches(order: list[int], size: int) -> Iterator[Batch]:
    for part in torch.tensor(order).split(size):
        yield Batch(IMAGES[part], part)


def test_the_loaders_batches_and_the_order_in_a_block_change_nothing() -> None:
    vit = model()
    straight = analysis.cka(vit, None, batches(list(range(27)), 4), block=8)
    assert (straight.images, straight.left_out) == (24, 3)
    assert "3 images were left out" in straight.notes[0]
    mixed = [i + 8 * block for block in range(3) for i in (3, 7, 0, 1, 6, 2, 5, 4)] + [26, 24, 25]
    for order, size in ((mixed, 5), (list(range(27)), 27), (list(reversed(range(27))), 6)):
        other = analysis.cka(vit, None, batches(order, size), block=8)
        np.testing.assert_allclose(other.values, straight.values, atol=1e-6)
    np.testing.assert_allclose(np.diag(straight.values), 1, atol=1e-9)
    np.testing.assert_allclose(straight.values, straight.values.T, atol=1e-9)


def test_all_at_once_does_not_depend_on_any_order() -> None:
    vit = model()
    shuffled = torch.randperm(27, generator=torch.Generator().manual_seed(1)).tolist()
    whole = analysis.cka(vit, None, batches(list(range(27)), 9), block=None)
    other = analysis.cka(vit, None, batches(shuffled, 7), block=None)
    np.testing.assert_allclose(whole.values, other.values, atol=1e-9)
    images, layer = 27 * 3 * 32 * 32 * 8, 27 * 4 * 32 * 8
    assert whole.images == 27 and whole.stored_mib == pytest.approx((images + layer) / 2**20)
    tokens = analysis.cka(vit, None, batches(shuffled, 7), examples="tokens", block=None)
    assert tokens.stored_mib == pytest.approx((images + 3 * layer) / 2**20)


def test_it_is_what_grams_of_all_features_give() -> None:
    """Passes side by side say what whole passes say."""
    vit, sums = model(), hsic.Sums("unbiased")
    outputs = list(analysis.dense_features(vit, IMAGES[:20]).values())[:3]
    sums.add([x.flatten(1) for x in outputs])
    found = analysis.cka(vit, None, IMAGES[:20].split(6))
    np.testing.assert_allclose(found.values, sums.ratio([("M", found.layers_a)]), atol=1e-12)


def test_a_fault_in_the_middle_of_a_pass_is_raised_and_nothing_is_left_behind() -> None:
    vit, threads = model(), threading.active_count()

    def fault(*_: object) -> None:
        raise RuntimeError("out of luck")

    handle = vit.blocks[1].mlp.register_forward_pre_hook(fault)
    with pytest.raises(RuntimeError, match="out of luck"):
        analysis.cka(vit, None, IMAGES.split(9))
    handle.remove()
    names = ["blocks.0", "blocks.2"]
    passes = walk(vit, names, lambda: vit(IMAGES[:2]))
    assert next(passes)[0] == "blocks.0"
    passes.close()
    assert threading.active_count() == threads
    assert not any(part._forward_hooks for part in vit.modules())
    assert [name for name, _ in walk(vit, ["blocks.0", "blocks.2"], lambda: vit(IMAGES[:2]))] == [
        "blocks.0",
        "blocks.2",
    ]


def test_samples_of_a_larger_set_are_put_together_by_index() -> None:
    vit = model()
    sparse = [Batch(IMAGES[:12], torch.arange(12) * 1000)]
    found = analysis.cka(vit, None, sparse, block=8)
    np.testing.assert_allclose(
        found.values, analysis.cka(vit, None, [IMAGES[:12]], block=8).values, atol=1e-9
    )


@pytest.mark.parametrize("examples", ["images", "pooled"])
def test_two_models_of_different_depth_and_size_are_compared(examples: str) -> None:
    small, large = model(0), model(1, layers=2)
    bigger = nn.functional.interpolate(IMAGES, size=(48, 48))
    found = analysis.cka(
        small, large, IMAGES.split(9), examples=examples, names=("a", "b"), loader_b=bigger.split(9)
    )
    assert found.values.shape == (3, 2)
    table = found.to_frame()
    assert table["model"][0] == "a" and table["model_b"][0] == "b" and len(table["value"]) == 6
    back = analysis.cka(large, small, bigger.split(9), examples=examples, loader_b=IMAGES.split(9))
    np.testing.assert_allclose(back.values, found.values.T, atol=1e-9)


def test_tokens_are_examples_only_where_both_models_have_the_same() -> None:
    small, large = model(0), model(1, layers=2)
    found = analysis.cka(small, large, IMAGES.split(9), examples="tokens")
    assert found.values.shape == (3, 2) and found.examples == "tokens"
    bigger = nn.functional.interpolate(IMAGES, size=(48, 48))
    with pytest.raises(UserError, match="108 and 243"):
        analysis.cka(small, large, IMAGES.split(9), examples="tokens", loader_b=bigger.split(9))


@pytest.mark.parametrize(
    ("examples", "estimator", "block", "metric", "how"),
    [
        ("images", "unbiased", 8, "cka_unbiased", "in a row; unbiased HSIC over blocks of up to 8 images"),
        (
            "tokens",
            "biased",
            None,
            "cka_biased_tokens",
            "each token is an example; biased HSIC over all 27 images",
        ),
        (
            "pooled",
            "unbiased",
            256,
            "cka_unbiased_pooled",
            "the mean over its tokens; unbiased HSIC over all 27",
        ),
    ],
)
def test_tables_and_words_say_which_cka_it_is(
    examples: str, estimator: str, block: int | None, metric: str, how: str
) -> None:
    found = analysis.cka(model(), None, IMAGES.split(9), examples, estimator, block)
    assert set(found.to_frame()["metric"]) == {metric} and how in found.how


def test_tokens_within_a_model_are_what_each_pair_alone_gives() -> None:
    x = [features(40, 6, seed)[:, :width] for seed, width in enumerate((6, 5, 4))]
    for estimator in ("biased", "unbiased"):
        every = hsic.pairwise_features(x, x, estimator)
        torch.testing.assert_close(every, hsic.pairwise_features(x, list(x), estimator))


class Constant(nn.Module):
    """A first layer that says the same whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)])
        nn.init.zeros_(self.layers[0].weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](images))


def test_what_cannot_be_compared_is_said_in_a_sentence() -> None:
    with pytest.raises(UserError, match="at least 4 images"):
        analysis.cka(model(), None, [IMAGES[:3]])
    with pytest.raises(UserError, match=r"'layers\.0' in Constant are the same for all examples"):
        analysis.cka(Constant(), None, [IMAGES.float()])
    with pytest.raises(UserError, match="estimator 'debiased'; known are unbiased, biased"):
        analysis.cka(model(), None, [IMAGES], estimator="debiased")
    with pytest.raises(UserError, match="'patches' as examples"):
        analysis.cka(model(), None, [IMAGES], examples="patches")
    with pytest.raises(UserError, match="at least 4 images, not 2"):
        analysis.cka(model(), None, [IMAGES], block=2)
    with pytest.raises(UserError, match="no blocks"):
        analysis.cka(nn.Conv2d(3, 3, 3), None, [IMAGES.float()])
