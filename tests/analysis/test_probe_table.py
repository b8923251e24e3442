"""The probe of an encoder, on an encoder whose features are known."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mimkit import encoders, plots
from mimkit.analysis.probe import ProbeRow, ProbeTable, few_layers, frozen, probe
from mimkit.data.batch import Batch, Skip
from mimkit.encoders.base import Encoder, Features, Level
from mimkit.errors import UserError
from mimkit.masks import Mask


class Bright(Encoder):
    """Three layers: the first knows nothing, the second the mean colour, the last half of it. With a class token that
    is noise.
    """

    levels = (Level((8, 8), 3),)
    unit = (8, 8)
    channels, depth = 3, 3

    def __init__(self, token: bool = True) -> None:
        super().__init__()
        self.token = token
        self.dropout = nn.Dropout(0.5)

    def forward(
        self,
        images: Tensor,
        mask: Mask | None = None,
        mask_token: Tensor | None = None,
        sizes: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Features:
        assert not torch.is_grad_enabled() and not self.training
        colour = self.dropout(images.mean((2, 3)))  # (B, 3)
        noise = torch.sin(colour * 1e4)
        made = {
            layer: Features((x[:, None, None],), None, noise[:, None] if self.token else None)
            for layer, x in ((1, noise), (2, colour), (3, colour + 0.7 * noise))
        }
        return Features(made[3].levels, None, made[3].prefix, {layer: made[layer] for layer in layers})


def batches(n: int = 90, classes: int = 3, start: int = 0) -> list[Batch]:
    rng = np.random.default_rng(start)
    labels = torch.arange(n) % classes
    colours = torch.eye(3)[labels] + 0.3 * torch.from_numpy(rng.standard_normal((n, 3))).float()
    images = colours[:, :, None, None].expand(-1, -1, 16, 16)
    return [
        Batch(images[i : i + 32], torch.arange(i, min(i + 32, n)), targets=labels[i : i + 32], skipped=())
        for i in range(0, n, 32)
    ]


def test_the_layer_that_knows_most_is_named() -> None:
    table = probe(Bright(), batches(), layers=[1, 2, 3])
    assert (table.best.layer, table.best.pooling) == (2, "mean")
    assert table.best.accuracy > 0.9
    blind = [row.accuracy for row in table.rows if row.layer == 1 or row.pooling == "cls"]
    assert max(blind) < 0.55
    assert table.chance == pytest.approx(1 / 3)
    assert (table.images, table.classes, table.folds) == (90, 3, 5)
    assert all(row.std is not None and len(row.folds) == 5 for row in table.rows)


def test_two_probes_are_equal_and_another_seed_differs() -> None:
    assert probe(Bright(), batches(), seed=3) == probe(Bright(), batches(), seed=3)
    assert probe(Bright(), batches(), seed=3).rows != probe(Bright(), batches(), seed=4).rows


def test_an_encoder_without_class_token_is_probed_by_its_mean_alone() -> None:
    table = probe(Bright(token=False), batches())
    assert {row.pooling for row in table.rows} == {"mean"}
    with pytest.raises(UserError, match="no class token"):
        probe(Bright(token=False), batches(), poolings=["cls"])


def test_a_test_split_has_no_spread_and_is_not_trained_on() -> None:
    table = probe(Bright(), batches(), test=batches(30, start=7), layers=[2], poolings=["mean"])
    assert table.tested == 30 and table.folds == 1
    assert [row.std for row in table.rows] == [None, None]
    assert table.best.accuracy > 0.85
    assert "tested on 30 others" in table.lines()[0]


def test_random_weights_stand_beside_the_trained_ones() -> None:
    torch.manual_seed(0)
    vit = encoders.build("vit_tiny", size=(16, 16))
    other = encoders.build("vit_tiny", size=(16, 16))
    vit.train()
    table = probe(vit, batches(), random=other, layers=[6, 12], folds=3)
    assert len(table.rows) == 2 * 2 * 2 * 2
    assert {row.weights for row in table.rows} == {"trained", "random"}
    assert vit.training and vit.blocks[0].training
    assert "random weights" in table.verdict()
    metrics = table.metrics()
    assert {"knn_mean_layer12", "knn_mean_layer12_std", "random_linear_cls_layer6"} <= set(metrics)


def test_a_timm_model_can_be_probed() -> None:
    table = probe(encoders.build("timm:resnet10t"), batches(30), folds=3, layers=[5])
    assert {row.pooling for row in table.rows} == {"mean"}


def test_the_last_layer_is_taken_behind_the_norm() -> None:
    torch.manual_seed(0)
    vit = encoders.build("vit_tiny", size=(16, 16))
    from mimkit.analysis.probe import collect

    features, labels, _ = collect({"trained": vit}, batches(8), [12])
    with frozen(vit):
        want = vit(batches(8)[0].images).pooled("mean")
    torch.testing.assert_close(features["trained", 12, "mean"], want)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_unreadable_images_are_counted() -> None:
    first, *rest = batches()
    noted = Batch(first.images, first.ids, targets=first.targets, skipped=(Skip(0, "a.jpg", "truncated"),))
    assert probe(Bright(), [noted, *rest], classifiers=["knn"]).skipped == 1


def test_images_without_labels_and_empty_sets_are_refused() -> None:
    unlabelled = [Batch(b.images, b.ids) for b in batches()]
    with pytest.raises(UserError, match="needs labels"):
        probe(Bright(), unlabelled)
    with pytest.raises(UserError, match="none could be read"):
        probe(Bright(), [])


def test_modes_come_back_after_an_error() -> None:
    module = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(RuntimeError), frozen(module):
        raise RuntimeError
    assert module.training and module[0].training and not module[1].training


def test_layers_are_spread_over_the_depth_and_end_with_the_last() -> None:
    assert few_layers(12) == [3, 6, 9, 12]
    assert few_layers(24) == [6, 12, 18, 24]
    assert few_layers(2) == [1, 2]
    assert few_layers(5) == [2, 3, 4, 5]


def test_the_table_reads_well_and_draws(tmp_path: object) -> None:
    rows = tuple(
        ProbeRow(weights, layer, "mean", classifier, 0.5 + 0.1 * layer, 0.02, (0.5,))
        for weights in ("trained", "random")
        for layer in (1, 2)
        for classifier in ("knn", "linear")
    )
    table = ProbeTable(rows, images=200, classes=2, chance=0.5, folds=5)
    lines = table.lines()
    assert len({len(line) for line in lines[1:4]}) == 1
    assert lines[-1].startswith("best: k-NN on the mean of layer 2, 70.0 ± 2.0 %; with random weights")
    assert [curve.random for curve in table.curves()] == [False, False, True, True]
    assert plots.svg(table.figure(), "a").startswith("<svg")
    assert plots.svg(table.bars(), "b").startswith("<svg")
