"""Batches: the same for any number of workers and processes and from any step on; damaged images never stop them."""

import logging
import os
import pickle
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.data.batch import Batch
from mimkit.data.loader import (
    PretrainData,
    check_batch,
    eval_batches,
    stack,
    train_batches,
)
from mimkit.data.normalise import normalise
from mimkit.data.sources import open_source
from mimkit.data.workers import ordered_map
from mimkit.errors import DataError, UserError
from mimkit.masks import RandomMasker

MASKER = RandomMasker(0.75, (8, 8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """37 JPEG and PNG files of many sizes, down to 1 x 1, in folders."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(37):
        height, width = (1, 1) if i == 5 else rng.integers(20, 120, 2)
        folder = root / f"class{i % 3}"
        folder.mkdir(exist_ok=True)
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.{'jpg' if i % 2 else 'png'}")
    return root


@pytest.fixture(scope="module")
def damaged(photos, tmp_path_factory) -> Path:
    """The same with 4 of 41 files unreadable."""
    root = tmp_path_factory.mktemp("damaged")
    for i, file in enumerate(sorted(photos.rglob("*.*"))):
        (root / f"{i:02}{file.suffix}").write_bytes(file.read_bytes())
    for i in range(4):
        (root / f"bad{i}.jpg").write_bytes(b"\xff\xd8 not a picture")
    return root


def data_of(path: Path, **options) -> PretrainData:
    return PretrainData(open_source(path), (32, 32), 3, MASKER, seed=3, **options)


def same(a: Batch, b: Batch) -> bool:
    masks = a.mask is not None and b.mask is not None and torch.equal(a.mask.hidden, b.mask.hidden)
    views = (a.views is None) == (b.views is None) and (a.views is None or torch.equal(a.views, b.views))
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.ids, b.ids)
        and masks
        and views
        and a.skipped == b.skipped
    )


def all_same(a: list, b: list) -> bool:
    return len(a) == len(b) > 0 and all(same(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_for_any_number_of_workers(damaged, workers):
    data = data_of(damaged)
    alone = list(train_batches(data, 8, 4, 0, 12, workers=0))
    assert all_same(alone, list(train_batches(data, 8, 4, 0, 12, workers=workers)))
    assert any(batch.skipped for batch in alone)


def test_a_run_from_step_k_sees_the_tail_of_the_run_from_step_0(damaged):
    data = data_of(damaged)
    whole = list(train_batches(data, 8, 4, 0, 12))
    assert all_same(whole[2 * 7 :], list(train_batches(data, 8, 4, 7, 12)))


def test_two_processes_see_together_what_one_sees(damaged):
    data = data_of(damaged)
    one = list(train_batches(data, 16, 4, 0, 4))
    two = [list(train_batches(data, 16, 4, 0, 4, rank=rank, world=2)) for rank in (0, 1)]
    assert all_same(one, [batch for pair in zip(*two, strict=True) for batch in pair])


def test_the_size_of_micro_batches_changes_nothing_but_the_cuts(photos):
    data = data_of(photos)
    small, large = list(train_batches(data, 8, 2, 0, 3)), list(train_batches(data, 8, 8, 0, 3))
    assert len(small) == 12 and len(large) == 3
    assert torch.equal(torch.cat([b.images for b in small]), torch.cat([b.images for b in large]))


def test_each_epoch_draws_new_crops_and_masks_and_a_seed_of_its_own_everything(photos):
    data = data_of(photos)
    a, b = data.batch([(0, 1)]), data.batch([(1, 1)])
    assert not torch.equal(a.images, b.images) and not torch.equal(a.mask.hidden, b.mask.hidden)
    assert not torch.equal(a.images, replace(data, seed=4).batch([(0, 1)]).images)


def test_masks_hide_the_share_asked_for_on_the_grid_of_the_crop(photos):
    batch = PretrainData(open_source(photos), (32, 64), 3, MASKER, 0).batch([(0, i) for i in range(5)])
    assert batch.images.shape == (5, 3, 32, 64) and batch.images.dtype == torch.uint8
    assert batch.mask.hidden.shape == (5, 4, 8) and (batch.mask.hidden.flatten(1).sum(1) == 24).all()
    assert PretrainData(open_source(photos), (30, 30), 3, None, 0).batch([(0, 0)]).mask is None


def test_repeated_augmentation_reads_an_image_once_and_gives_each_crop_its_own_mask(photos):
    data = data_of(photos, repeats=4)
    reads = count_reads(data)
    batch = data.batch([(0, 1), (0, 2)])
    assert reads == [1, 2]
    assert batch.ids.tolist() == [1] * 4 + [2] * 4 and batch.views.tolist() == [0, 1, 2, 3] * 2
    flat = batch.images.flatten(1)
    assert len({bytes(row.numpy()) for row in flat}) == 8
    assert len({bytes(row.numpy()) for row in batch.mask.hidden.flatten(1)}) > 4


def count_reads(data: PretrainData) -> list[int]:
    reads: list[int] = []
    read = data.source.read
    data.source.read = lambda i: (reads.append(i), read(i))[1]
    return reads


def test_with_repeats_an_epoch_is_one_pass_over_the_images(photos):
    data = data_of(photos, repeats=2)
    batches = list(train_batches(data, 12, 4, 0, 6))  # 6 images a step, 6 steps of 37 images
    ids = torch.cat([batch.ids[::2] for batch in batches])
    assert len(ids) == 36 and len(set(ids.tolist())) == 36
    assert all_same(batches, list(train_batches(data, 12, 4, 0, 6, workers=2)))


def test_a_damaged_image_is_replaced_by_another_draw_and_named(damaged):
    data = data_of(damaged)
    bad = [i for i in range(len(data)) if data.source.key(i).startswith("bad")]
    batch = data.batch([(0, id) for id in bad])
    assert {skip.id for skip in batch.skipped} == set(bad) and not set(batch.ids.tolist()) & set(bad)
    assert {skip.name for skip in batch.skipped} == {f"bad{i}.jpg" for i in range(4)}
    assert all(skip.reason for skip in batch.skipped)


def test_a_file_that_vanished_after_the_scan_is_skipped_like_a_damaged_one(photos, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(next(photos.rglob("*.png")).read_bytes())
    data = data_of(tmp_path)
    (tmp_path / "1.png").unlink()
    batch = data.batch([(0, 1)])
    assert batch.skipped[0].name == "1.png" and batch.ids.item() != 1


@pytest.mark.parametrize("workers", [0, 2])
def test_when_nothing_can_be_read_the_error_names_the_last_file_and_its_reason(tmp_path, workers):
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"10 images in a row could not be read .* 'a.jpg': .*data check"):
        list(train_batches(data_of(tmp_path), 1, 1, 0, 2, workers=workers))


def test_channels_that_do_not_fit_are_named_with_both_counts(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(
        tmp_path / "bands.tif",
        np.zeros((20, 20, 5), np.uint8),
        photometric="minisblack",
        planarconfig="contig",
    )
    with pytest.raises(DataError, match=r"5 .* 3"):
        data_of(tmp_path).batch([(0, 0)])


@pytest.mark.parametrize("workers", [0, 2])
def test_five_channels_of_sixteen_bits_go_through_to_normalised_floats(tmp_path, workers):
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).integers(0, 65535, (6, 40, 50, 5), dtype=np.uint16)
    for i, image in enumerate(pixels):
        tifffile.imwrite(tmp_path / f"{i}.tif", image, photometric="minisblack", planarconfig="contig")
    data = PretrainData(open_source(tmp_path), (16, 24), 5, MASKER, 0)
    for batch in train_batches(data, 3, 3, 0, 2, workers=workers):
        assert batch.images.dtype == torch.uint16 and batch.images.shape == (3, 5, 16, 24)
        floats = normalise(batch.images, [0.5] * 5, [0.25] * 5)
        assert floats.dtype == torch.float32 and 0.3 < floats.std() < 1.5 and floats.mean().abs() < 0.2


def test_mixed_depths_become_the_deeper_one_with_white_still_white():
    eight = torch.tensor([0, 7, 255], dtype=torch.uint8).view(3, 1, 1)
    sixteen = torch.tensor([0, 7, 65535], dtype=torch.uint16).view(3, 1, 1)
    both = stack([eight, sixteen])
    assert both.dtype == torch.uint16 and both[0].flatten().tolist() == [0, 7 * 257, 65535]
    floats = stack([eight, sixteen, torch.full((3, 1, 1), 0.5)])
    assert floats.dtype == torch.float32 and floats[:, 2].flatten().tolist() == [1, 1, 0.5]
    assert torch.equal(normalise(both[:1], [0] * 3, [1] * 3), normalise(floats[:1], [0] * 3, [1] * 3))


def test_an_image_smaller_than_the_crop_is_scaled_up_and_counted(photos, caplog):
    sizes = [Image.open(file).size for file in sorted(photos.rglob("*.*"))]
    with caplog.at_level(logging.WARNING):
        (batch,) = train_batches(data_of(photos), 37, 37, 0, 1)
    assert len(batch.small) == sum(min(size) < 32 for size in sizes) > 0
    assert f"Smaller than the crop, so scaled up: {len(batch.small)} image" in caplog.text


@pytest.mark.parametrize(
    ("n", "batch", "micro", "world", "repeats", "message"),
    [
        (10, 16, 4, 1, 1, "batch of 16 is larger than the data set of 10 images; use train.batch_size=8,"),
        (10, 16, 16, 1, 1, "use train.batch_size=10 train.micro_batch=10,"),
        (10, 64, 4, 2, 2, r"\(20 crops\); use train.batch_size=16,"),
        (2, 64, 16, 4, 1, "use 2 processes or fewer"),
        (
            *(100, 30, 4, 2, 1),
            "not a multiple of 4 images a micro-batch x 2 processes; use train.micro_batch=3 or train.batch_size=24",
        ),
        (100, 32, 5, 1, 1, "x 1 process; use train.micro_batch=4 or train.batch_size=30"),
        (100, 32, 16, 3, 1, "x 3 processes; use train.batch_size=48"),
        (100, 9, 3, 1, 2, "use train.micro_batch=2"),
    ],
)
def test_sizes_that_do_not_fit_name_the_override_that_does(n, batch, micro, world, repeats, message):
    with pytest.raises(UserError, match=message):
        check_batch(n, batch, micro, world, repeats)


def test_sizes_are_checked_before_anything_is_read(photos):
    with pytest.raises(UserError, match=r"train.batch_size=37"):
        train_batches(data_of(photos), 64, 1, 0, 5)
    with pytest.raises(UserError, match="crop_scale"):
        data_of(photos, scale=(0.0, 1.0))


def test_a_mask_covers_what_the_encoder_will_pad(photos):
    sample = PretrainData(open_source(photos), (30, 36), 3, MASKER, 0).sample(0, 0)
    assert sample.images[0].shape[1:] == (30, 36) and sample.masks[0].grid == (4, 5)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_goes_through_all_images_in_order_with_labels(photos, workers):
    source = open_source(photos, labels=True)
    batches = list(eval_batches(source, (32, 32), 3, 10, workers=workers))
    assert torch.cat([b.ids for b in batches]).tolist() == list(range(37))
    assert torch.cat([b.targets for b in batches]).tolist() == [source.label(i) for i in range(37)]
    assert [len(b.images) for b in batches] == [10, 10, 10, 7]
    chosen = list(eval_batches(source, (32, 32), 3, 10, workers=workers, ids=[5, 3]))
    assert chosen[0].ids.tolist() == [5, 3]


def test_evaluation_leaves_unreadable_images_out_and_reports_them(damaged):
    batches = list(eval_batches(open_source(damaged), (32, 32), 3, 7))
    assert sum(len(b.images) for b in batches) == 37 and sum(len(b.skipped) for b in batches) == 4
    bad = [i for i in range(41) if open_source(damaged).key(i).startswith("bad")]
    only_bad = next(eval_batches(open_source(damaged), (32, 32), 3, 7, ids=bad))
    assert only_bad.images.shape == (0, 3, 32, 32) and only_bad.targets is None


def test_loader_processes_leave_the_global_generator_of_torch_alone(photos):
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    list(train_batches(data_of(photos), 8, 8, 0, 2, workers=2))
    assert torch.equal(torch.rand(3), want)


def test_data_and_batches_travel_to_spawned_processes(photos):
    data = pickle.loads(pickle.dumps(data_of(photos)))
    assert same(data.batch([(0, 3)]), data_of(photos).batch([(0, 3)]))


def test_closing_the_iterator_ends_its_processes(photos):
    batches = train_batches(data_of(photos), 4, 4, 0, 1000, workers=2)
    next(batches)
    children = children_of(os.getpid())
    assert len(children) >= 2
    batches.close()
    wait_until(lambda: not any(alive(child) for child in children))


def test_an_interrupt_reaches_the_main_process_alone(photos):
    batches = train_batches(data_of(photos), 4, 4, 0, 1000, workers=2)
    for _ in range(2):
        next(batches)  # both are there
    for child in children_of(os.getpid()):
        os.kill(child, signal.SIGINT)
        os.kill(child, signal.SIGTERM)
    for _ in range(20):
        next(batches)
    batches.close()


def test_a_process_that_dies_gives_one_sentence():
    results = ordered_map(die_at_three, range(100), workers=1)
    with pytest.raises(
        DataError, match=r"^While images were being read, the loader process \d+ was killed by SIGKILL"
    ):
        list(results)


def die_at_three(i: int) -> int:
    if i == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return i


def test_a_fault_of_ours_keeps_its_own_type_and_traceback():
    with pytest.raises(ZeroDivisionError, match="divide"):
        list(ordered_map(divide, [1, 0], workers=1))


def divide(i: int) -> float:
    return 1 / i


def children_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not children.exists():
        pytest.skip("needs Linux's list of child processes")
    return [int(child) for child in children.read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
