"""The classifier: pooling, heads, what trains, its loss; and that it learns, through the loader and the engine."""

import copy
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mimkit import encoders
from mimkit.data.batch import Batch
from mimkit.data.labelled import Augmentation, FinetuneData, LabelledBatch, prepare_training
from mimkit.data.loader import eval_batches, train_batches
from mimkit.data.mixing import Mixing, smooth_targets
from mimkit.data.normalise import prepare
from mimkit.data.sources import open_source
from mimkit.encoders.timm import TimmEncoder
from mimkit.encoders.vit import ViT
from mimkit.engine import checkpoint
from mimkit.engine.lars import LARS
from mimkit.engine.loop import fit
from mimkit.engine.optimiser import adamw, layer_decay_groups, pretrain_groups
from mimkit.engine.options import FitOptions
from mimkit.engine.schedule import Schedule
from mimkit.errors import UserError
from mimkit.tasks import evaluate
from mimkit.tasks.classify import Classifier, cross_entropy

CLASSES = ["red", "green", "blue"]
GREY = (0.5, 0.5, 0.5)


def encoder_of(seed: int = 0, **options: float) -> ViT:
    torch.manual_seed(seed)
    return ViT(24, 3, 2, patch=(4, 4), size=(16, 16), **options)  # type: ignore[arg-type]


def batch_of(n: int = 6, seed: int = 0) -> Batch:
    images = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Batch(images, torch.arange(n), targets=torch.arange(n) % 3)


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_mean_pooling_normalises_behind_the_mean_and_leaves_the_last_norm_out() -> None:
    encoder = encoder_of()
    plain = copy.deepcopy(encoder)
    plain.norm = nn.Identity()
    model, batch = Classifier(encoder, CLASSES).eval(), batch_of()
    want = F.layer_norm(plain(batch.images).levels[0].mean((1, 2)), (24,), eps=1e-6)
    torch.testing.assert_close(model.features(batch), want)
    assert not [name for name in model.state_dict() if name.startswith("encoder.norm")]


def test_class_token_pooling_reads_it_behind_the_norm() -> None:
    encoder, batch = encoder_of(), batch_of()
    want = encoder(batch.images).prefix[:, 0]
    model = Classifier(encoder, CLASSES, pooling="cls")
    assert torch.equal(model.features(batch), want) and "encoder.norm.weight" in model.state_dict()


def test_a_foreign_backbone_keeps_its_norm() -> None:
    model = Classifier(encoders.build("timm:resnet10t", channels=3), CLASSES)
    assert isinstance(model.fc_norm, nn.Identity)
    assert model(Batch(torch.randn(2, 3, 32, 32), torch.arange(2), targets=torch.tensor([0, 2]))).total > 0


def test_padding_does_not_change_an_answer() -> None:
    model, batch = Classifier(encoder_of(), CLASSES).eval(), batch_of()
    nn.init.normal_(model.head.weight)
    padded = F.pad(batch.images, (0, 8, 0, 4), value=9.0)
    sizes = torch.tensor([[16, 16]] * 6)
    torch.testing.assert_close(
        model.logits(Batch(padded, batch.ids, sizes=sizes)), model.logits(batch), rtol=1e-4, atol=1e-5
    )


def test_all_classes_start_equally_likely() -> None:
    loss = Classifier(encoder_of(), CLASSES, smoothing=0.1)(batch_of()).total
    assert float(loss.detach()) == pytest.approx(math.log(3), abs=1e-3)
    assert float(Classifier(encoder_of(), CLASSES).head.weight.detach().std()) == pytest.approx(2e-5, rel=0.3)


def test_everything_trains_positions_too() -> None:
    model = Classifier(encoder_of(), CLASSES)
    assert trained(model) == {name for name, _ in model.named_parameters()}
    assert "encoder.pos_embed" in trained(model) and not model.frozen()


@pytest.mark.parametrize(
    ("blocks", "whole", "halves"),
    [(0, [], []), (0.5, [], [2]), (1, [2], []), (1.5, [2], [1]), (3, [0, 1, 2], [])],
)
def test_a_partial_fine_tuning_trains_the_last_blocks_norm_and_head(
    blocks: float, whole: list[int], halves: list[int]
) -> None:
    model = Classifier(encoder_of(), CLASSES, blocks=blocks, pooling="cls")
    inner = {name for name, _ in model.named_parameters() if name.startswith("encoder.blocks.")}
    want = {name for name in inner if int(name.split(".")[2]) in whole}
    want |= {n for n in inner if int(n.split(".")[2]) in halves and n.split(".")[3] in ("norm2", "mlp")}
    assert trained(model) == want | {"encoder.norm.weight", "encoder.norm.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize("blocks", [-1, 0.3, 4])
def test_a_number_of_blocks_that_cannot_be_is_refused(blocks: float) -> None:
    with pytest.raises(UserError, match="up to the encoder's 3"):
        Classifier(encoder_of(), CLASSES, blocks=blocks)


def test_a_partial_fine_tuning_of_timms_models_trains_their_last_blocks_and_keeps_frozen_statistics() -> None:
    encoder = encoders.build("timm:resnet18")
    model = Classifier(encoder, CLASSES, blocks=2)
    inside = trained(model.encoder)
    assert {name.split(".")[1] for name in inside} == {"layer4"} and "model.layer4.0.conv1.weight" in inside
    assert isinstance(encoder, TimmEncoder) and not encoder.model.bn1.training
    assert encoder.model.layer4[0].bn1.training and model.head.training
    with pytest.raises(UserError, match="no MLP half"):
        Classifier(encoder, CLASSES, blocks=0.5)
    half = Classifier(encoders.build("timm:vit_tiny_patch16_224", size=(32, 32)), CLASSES, blocks=0.5)
    assert {name.split(".")[3] for name in trained(half.encoder)} == {"norm2", "mlp"}


def test_a_probe_trains_its_linear_layer_alone_and_freezes_drop_path() -> None:
    model = Classifier(encoder_of(drop_path=0.9), CLASSES, pooling="cls", probe=True)
    batch = batch_of()
    assert trained(model) == {"head.1.weight", "head.1.bias"}
    assert model.head.training and not any(part.training for part in model.encoder.modules())
    assert torch.equal(model.features(batch), model.features(batch))
    model(batch).total.backward()
    assert model.head[1].weight.grad is not None
    assert float(model.head[1].weight.detach().std()) == pytest.approx(0.01, rel=0.4)


def test_a_probe_of_the_mean_reads_what_the_pre_trained_norm_gives() -> None:
    encoder, batch = encoder_of(), batch_of()
    want = encoder(batch.images).levels[0].mean((1, 2))
    torch.testing.assert_close(Classifier(encoder, CLASSES, probe=True).features(batch), want)


def test_a_probes_statistics_are_kept_in_checkpoints(tmp_path: Path) -> None:
    model, other = (Classifier(encoder_of(seed), CLASSES, pooling="cls", probe=True) for seed in (0, 1))
    for seed in range(3):
        model(batch_of(seed=seed))
    checkpoint.restore(checkpoint.save(tmp_path, checkpoint.State(), model), other)
    assert torch.equal(model.eval().logits(batch_of()), other.eval().logits(batch_of()))


def test_labels_are_smoothed_and_soft_targets_taken_as_they_are() -> None:
    model, batch = Classifier(encoder_of(), CLASSES, smoothing=0.2), batch_of()
    nn.init.normal_(model.head.weight)
    soft = Batch(batch.images, batch.ids, targets=smooth_targets(batch.targets, 3, 0.2))
    torch.testing.assert_close(model(batch).total, model(soft).total)


def test_class_weights_weigh_labels_and_soft_targets_alike() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 0, 0, 1, 2])
    weights = torch.tensor([0.5, 2.0, 1.0])
    logs = logits.log_softmax(1)
    want = -(weights[labels] * logs[torch.arange(5), labels]).mean()
    torch.testing.assert_close(cross_entropy(logits, labels, weights=weights), want)
    for smoothing in (0.0, 0.1):
        soft = smooth_targets(labels, 3, smoothing)
        torch.testing.assert_close(
            cross_entropy(logits, labels, smoothing, weights), cross_entropy(logits, soft, weights=weights)
        )


def test_class_weights_are_settings_and_no_part_of_a_checkpoint() -> None:
    model = Classifier(encoder_of(), CLASSES, weights=[1.0, 2.0, 3.0])
    assert "weights" not in model.state_dict() and model(batch_of()).total.isfinite()


def test_the_loss_is_taken_in_float32_under_autocast() -> None:
    model, batch = Classifier(encoder_of(), CLASSES), batch_of()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(batch).total
        assert model.predict(batch).logits.dtype == torch.float32
    assert loss.dtype == torch.float32
    probe = Classifier(encoder_of(), CLASSES, probe=True)
    with torch.autocast("cpu", torch.bfloat16):
        probe(batch).total.backward()
    assert probe.head[0].running_mean.dtype == torch.float32


@pytest.mark.parametrize(
    ("classes", "options", "said"),
    [
        (["one"], {}, "at least two classes; there is 1"),
        (["a", "b", "a"], {}, "'a' is named twice"),
        (CLASSES, {"pooling": "max"}, "'max'; known are 'mean' and 'cls'"),
        (CLASSES, {"weights": [1.0]}, "1 class weights for 3 classes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(classes: list[str], options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Classifier(encoder_of(), classes, **options)


def test_training_without_labels_is_refused() -> None:
    batch = batch_of()
    with pytest.raises(UserError, match="these have none"):
        Classifier(encoder_of(), CLASSES)(Batch(batch.images, batch.ids))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noisy pictures that differ in which channel is bright."""
    place, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for channel, name in enumerate(CLASSES):
        (place / name).mkdir()
        for i in range(16):
            pixels = rng.integers(0, 160, (24, 24, 3), np.uint8)
            pixels[..., channel] += 90
            Image.fromarray(pixels).save(place / name / f"{i}.png")
    return place


def finetuned(
    folder: Path, run: Path, model: Classifier, steps: int, workers: int = 0, resume: bool = False
) -> None:
    """Up to `steps` of 24 with the whole augmentation, mixing and layer-wise rates."""
    data = FinetuneData(open_source(folder, labels=True), (16, 16), 3, seed=0)
    groups = layer_decay_groups(model, 0.05, 0.75, model.depth_of, model.layers)
    schedule = Schedule(3e-3, epochs=steps // 3, steps_per_epoch=3, min_lr=1e-3)
    options = FitOptions(schedule, micro_batch=8, accumulate=2, writers=(), checkpoint_every=6)

    def batches(start: int) -> Iterator[LabelledBatch]:
        return train_batches(data, 16, 8, start, steps, workers)

    ready = partial(prepare_training, device="cpu", mean=GREY, std=GREY, mixing=Mixing(3))
    fit(model, adamw(groups, (0.9, 0.999)), batches, ready, options, run, resume=resume, bar=False)


def accuracy(folder: Path, model: Classifier) -> float:
    batches = eval_batches(open_source(folder, labels=True), (16, 16), 3, 16)
    return evaluate(model, batches, partial(prepare, device="cpu", mean=GREY, std=GREY)).result()["top1"]


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_fine_tuning_learns_through_all_its_augmentation(folder: Path, tmp_path: Path) -> None:
    model = Classifier(encoder_of(drop_path=0.1), CLASSES)
    finetuned(folder, tmp_path, model, 45)
    assert accuracy(folder, model) > 0.8


def test_a_run_with_mixing_erasing_and_drop_path_is_the_same_with_workers(
    folder: Path, tmp_path: Path
) -> None:
    models = [Classifier(encoder_of(drop_path=0.2), CLASSES) for _ in range(2)]
    for model, workers in zip(models, (0, 2), strict=True):
        finetuned(folder, tmp_path / str(workers), model, 6, workers)
    assert torch.equal(weights_of(models[0]), weights_of(models[1]))


def test_a_probe_learns_with_lars_on_frozen_features(folder: Path, tmp_path: Path) -> None:
    model = Classifier(encoder_of(), CLASSES, pooling="mean", smoothing=0.0, probe=True)
    before = weights_of(model.encoder)
    data = FinetuneData(
        open_source(folder, labels=True),
        (16, 16),
        3,
        seed=0,
        augmentation=Augmentation(crop="clipped", randaugment=None, erasing=None),
    )
    optimiser = LARS(pretrain_groups(model, 0.0))
    options = FitOptions(Schedule(2.0, epochs=40, steps_per_epoch=3), micro_batch=16, writers=())
    ready = partial(prepare_training, device="cpu", mean=GREY, std=GREY)
    fit(
        model,
        optimiser,
        lambda s: train_batches(data, 16, 16, s, 120),
        ready,
        options,
        tmp_path,
        bar=False,
    )
    assert torch.equal(weights_of(model.encoder), before)
    assert accuracy(folder, model) > 0.8
