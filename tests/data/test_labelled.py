"""Labelled training batches: the right labels, the same for any workers and processes, and what the device adds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import encoded, fill, picture
from torch import Tensor

from mimkit.data.augment import View
from mimkit.data.erasing import Erasing
from mimkit.data.labelled import (
    FINETUNE,
    Augmentation,
    FinetuneData,
    LabelledBatch,
    clipped_box,
    clipped_sides,
    prepare_training,
)
from mimkit.data.loader import EvalData, eval_batches, train_batches
from mimkit.data.mixing import Mixing
from mimkit.data.randaugment import RandAugment
from mimkit.data.sources import open_source
from mimkit.errors import DataError, UserError

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
PROBE = Augmentation(crop="clipped", randaugment=None, erasing=None)
PLAIN = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, randaugment=None, erasing=None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of grey pictures, dark and light, four each; the number of a picture is its grey."""
    for label, base in (("dark", 0), ("light", 200)):
        (tmp_path / label).mkdir()
        for i in range(4):
            grey = np.full((32, 32, 3), base + 10 * i, np.uint8)
            (tmp_path / label / f"{i}.png").write_bytes(encoded(grey, "PNG"))
    return tmp_path


def data_of(folder: Path, augmentation: Augmentation = FINETUNE, **options: object) -> FinetuneData:
    source = open_source(folder, labels=True)
    return FinetuneData(source, (16, 16), 3, seed=0, augmentation=augmentation, **options)  # type: ignore[arg-type]


def collected(data: FinetuneData, micro: int = 4, steps: int = 3, **options: int) -> list[LabelledBatch]:
    return list(train_batches(data, 4, micro, 0, steps, **options))


def assert_same(a: list[LabelledBatch], b: list[LabelledBatch]) -> None:
    for name in ("images", "ids", "targets"):
        assert torch.equal(*(torch.cat([getattr(batch, name) for batch in made]) for made in (a, b)))


def test_each_picture_has_the_label_of_its_folder(folder: Path) -> None:
    for batch in collected(data_of(folder, PLAIN)):
        light = batch.images[:, 0, 0, 0] >= 200
        assert torch.equal(batch.targets, light.long())


def test_batches_are_the_same_for_any_number_of_workers(folder: Path) -> None:
    data = data_of(folder)
    alone, together = collected(data), collected(data, workers=2)
    assert_same(alone, together)
    for a, b in zip(alone, together, strict=True):
        assert (a.boxes is None) == (b.boxes is None) and (a.boxes is None or torch.equal(a.boxes, b.boxes))


def test_two_processes_see_together_what_one_sees(folder: Path) -> None:
    data = data_of(folder)
    halves = [collected(data, 2, rank=rank, world=2) for rank in (0, 1)]
    assert_same(collected(data), [batch for pair in zip(*halves, strict=True) for batch in pair])


def test_a_run_resumes_in_the_middle(folder: Path) -> None:
    data = data_of(folder)
    assert_same(collected(data)[2:], list(train_batches(data, 4, 4, 2, 3)))


def test_an_image_looks_different_in_the_next_epoch(folder: Path) -> None:
    (folder / "dark" / "0.png").write_bytes(encoded(picture(64, 64), "PNG"))
    data = data_of(folder)
    first, second = (data.sample(epoch, 0).images[0] for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_repeats_stand_side_by_side_with_one_label_each(folder: Path) -> None:
    batch = collected(data_of(folder, repeats=2))[0]
    assert torch.equal(batch.ids[::2], batch.ids[1::2]) and torch.equal(
        batch.targets[::2], batch.targets[1::2]
    )
    assert batch.views.tolist() == [0, 1, 0, 1]


def test_an_unreadable_image_is_replaced_together_with_its_label(folder: Path) -> None:
    (folder / "dark" / "1.png").write_bytes(b"no picture")
    batches = collected(data_of(folder, PLAIN), steps=4)
    assert {skip.name for batch in batches for skip in batch.skipped} == {"dark/1.png"}
    for batch in batches:
        assert torch.equal(batch.targets, (batch.images[:, 0, 0, 0] >= 200).long())


def test_nothing_but_unreadable_images_ends_with_a_sentence(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="10 images in a row"):
        data_of(tmp_path).sample(0, 0)


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    source = open_source(fill(tmp_path, "1.jpg", "2.jpg"))
    with pytest.raises(UserError, match="holds no labels: give class folders"):
        FinetuneData(source, (16, 16), 3, seed=0)


def test_a_fill_for_other_channels_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="3 values and the images have 1 channel;"):
        replace(data_of(folder), channels=1)


def test_grey_pictures_are_augmented_in_one_channel(folder: Path) -> None:
    grey = replace(FINETUNE, randaugment=RandAugment(probability=1.0, fill=(128,)))
    batch = replace(data_of(folder, PLAIN), channels=1, augmentation=grey).batch([(0, 0), (0, 5)])
    assert batch.images.shape == (2, 1, 16, 16)


def prepared(batch: LabelledBatch, mixing: Mixing | None = None, seed: int = 0) -> LabelledBatch:
    torch.manual_seed(seed)
    return prepare_training(batch, "cpu", MEAN, STD, mixing)


def normalised(images: Tensor) -> Tensor:
    return (images.float() / 255 - 0.5) / 0.25


def test_preparing_normalises_and_leaves_labels_alone(folder: Path) -> None:
    batch = collected(data_of(folder, PLAIN))[0]
    ready = prepared(batch)
    torch.testing.assert_close(ready.images, normalised(batch.images))
    assert torch.equal(ready.targets, batch.targets)


def test_erased_rectangles_hold_noise_after_normalising(folder: Path) -> None:
    batch = collected(data_of(folder, replace(PLAIN, erasing=Erasing(1.0))))[0]
    ready = prepared(batch)
    for image, before, box in zip(ready.images, normalised(batch.images), batch.boxes.tolist(), strict=True):
        top, left, height, width = box
        changed = (image != before).any(0)
        assert changed.sum() == height * width == changed[top : top + height, left : left + width].sum()


def test_mixing_makes_targets_soft_and_depends_on_the_seed_alone(folder: Path) -> None:
    batch = collected(data_of(folder))[0]
    first, again, other = (prepared(batch, Mixing(2), seed) for seed in (1, 1, 2))
    assert first.targets.shape == (4, 2) and first.targets.is_floating_point()
    assert torch.equal(first.images, again.images) and torch.equal(first.targets, again.targets)
    assert not torch.equal(first.targets, other.targets)


def test_boxes_move_to_the_device_with_the_batch(folder: Path) -> None:
    batch = collected(data_of(folder, replace(PLAIN, erasing=Erasing(1.0))))[0]
    moved = batch.to(torch.device("meta"))
    assert moved.boxes.is_meta and moved.images.is_meta and moved.targets.is_meta


def test_evaluation_leaves_out_what_cannot_be_read_and_keeps_labels_in_step(folder: Path) -> None:
    (folder / "dark" / "1.png").write_bytes(b"no picture")
    (batch,) = eval_batches(open_source(folder, labels=True), (16, 16), 3, 8)
    assert batch.targets.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert isinstance(EvalData(open_source(folder), (16, 16), 3).image(0), Tensor)


def test_the_probes_crop_is_cut_to_the_image_and_lies_inside() -> None:
    for i in range(200):
        box = clipped_box(np.random.default_rng(i), 20, 60, PROBE.scale, PROBE.ratio)
        assert 0 <= box.top <= box.top + box.height <= 20 and 0 <= box.left <= box.left + box.width <= 60
    assert clipped_sides(20, 60, 1.0, 4 / 3) == (20, 40)
    assert clipped_sides(60, 20, 1.0, 4 / 3) == (30, 20)  # wanted 40 wide


def test_the_probes_augmentation_is_crop_and_flip_alone() -> None:
    view = PROBE.view(np.random.default_rng(0), 40, 40)
    assert isinstance(view, View)


def test_an_unknown_crop_is_refused() -> None:
    with pytest.raises(UserError, match="'square'; known are resized and clipped"):
        Augmentation(crop="square")
