"""Does pre-training on a thousand photographs help on other, labelled ones? Three seeds, beside random weights.

An honest run of an hour on two cores; `make test-slow` prints the table that stands in docs/results.md.
"""

import zipfile
from pathlib import Path
from statistics import mean, stdev

import pytest
from seeds import EPOCHS, SHARED, every_seed


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.skipif(
    not SHARED.exists(), reason="the data sets imagenet_samples and cifar10 do not lie beside the checkout"
)
def test_tiny_mae_on_photographs_is_probed_on_cifar10_beside_random_weights(tmp_path: Path) -> None:
    with zipfile.ZipFile(SHARED / "cifar10" / "train.zip") as archive:
        archive.extractall(tmp_path / "cifar10")
    tables = every_seed("mae_tiny", tmp_path)
    how = "5000 images of cifar10, 5-fold; accuracy in %, mean ± std of seeds"
    print(f"\nmae_tiny, {EPOCHS} epochs on imagenet_samples; {how}")
    for classifier in ("knn", "linear"):
        for weights in ("trained", "random"):
            best = [100 * table.best_of(weights, classifier).accuracy for table in tables]
            layers = sorted({table.best_of(weights, classifier).layer for table in tables})
            print(f"{classifier:7} {weights:8} {mean(best):5.1f} ± {stdev(best):.1f}   best layer {layers}")
    gains = [
        table.best_of("trained", "linear").accuracy - table.best_of("random", "linear").accuracy
        for table in tables
    ]
    assert all(gain > 0 for gain in gains), gains


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.skipif(
    not SHARED.exists(), reason="the data sets imagenet_samples and cifar10 do not lie beside the checkout"
)
def test_tiny_mcmae_is_probed_beside_tiny_mae_after_equal_steps(tmp_path: Path) -> None:
    """No claim which is better at this size: what must hold is that either learned more than random weights know."""
    with zipfile.ZipFile(SHARED / "cifar10" / "train.zip") as archive:
        archive.extractall(tmp_path / "cifar10")
    print(
        f"\n{EPOCHS} epochs on imagenet_samples; 5000 images of cifar10, 5-fold; accuracy in %, mean ± std of seeds"
    )
    for recipe in ("mae_tiny", "mcmae_tiny"):
        tables = every_seed(recipe, tmp_path)
        for classifier in ("knn", "linear"):
            found = {}
            for weights in ("trained", "random"):
                best = found[weights] = [
                    100 * table.best_of(weights, classifier).accuracy for table in tables
                ]
                print(f"{recipe:10} {classifier:7} {weights:8} {mean(best):5.1f} ± {stdev(best):.1f}")
            gains = [a - b for a, b in zip(found["trained"], found["random"], strict=True)]
            assert classifier == "knn" or all(gain > 0 for gain in gains), (recipe, gains)
