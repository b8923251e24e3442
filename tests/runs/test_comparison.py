"""Does pre-training on unlabelled photographs help to classify others? kNN, linear probe and fine-tuning, three seeds.

An honest run of some two hours on two quiet cores; `make test-slow ARGS='-s tests/runs/test_comparison.py'` prints the
table.
"""

import zipfile
from pathlib import Path

import pytest

import mimkit
from mimkit.analysis.comparison import Comparison

SHARED = Path(__file__).parents[3] / "shared" / "data"
SIZE = ("data.size=32", "encoder.patch=4")
PRETRAINING = ("train.epochs=40", "log.samples_every=40")
FINETUNING = ("train.epochs=10", "train.batch_size=64", "schedule.warmup_epochs=1", "data.crop_scale=[0.5,1]")


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.skipif(
    not SHARED.exists(), reason="the data sets imagenet_samples and cifar10 do not lie beside the checkout"
)
def test_pretraining_on_photographs_is_compared_with_random_weights_on_cifar10(tmp_path: Path) -> None:
    found = compare_on_cifar10(tmp_path, PRETRAINING, FINETUNING, seeds=3)
    print("\n" + "\n".join(found.lines()))
    start = str(tmp_path / "run")
    for use in ("linear", "finetune"):
        assert found.accuracy(start, use, 1.0)[0] > 0.35  # ten classes
    assert found.gap(start, "random", "linear", 1.0).beyond_noise


def compare_on_cifar10(
    folder: Path, pretraining: tuple[str, ...], finetuning: tuple[str, ...], seeds: int
) -> Comparison:
    """Pre-train on the photographs and the training images, both without labels, and compare with random weights."""
    for part in ("train", "test"):
        with zipfile.ZipFile(SHARED / "cifar10" / f"{part}.zip") as archive:
            archive.extractall(folder)
    images = [*(SHARED / "imagenet_samples" / "images").iterdir(), *(folder / "train").rglob("*.jpg")]
    (folder / "images.txt").write_text("\n".join(map(str, sorted(images))))
    run = folder / "run"
    mimkit.pretrain(
        "mae_tiny", [f"data.path={folder / 'images.txt'}", f"train.run={run}", *SIZE, *pretraining]
    )
    sets = [f"data.path={folder / 'train'}", f"data.val={folder / 'test'}"]
    return mimkit.compare(["random", run], [*sets, *finetuning], folder / "comparison", seeds)
