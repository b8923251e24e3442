"""A recipe pre-trained on imagenet_samples and probed on cifar10, once a seed."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

import mimkit
from mimkit.analysis.probe import ProbeTable

SHARED = Path(__file__).parents[3] / "shared" / "data"
SEEDS = (0, 1, 2)
EPOCHS = 60


def every_seed(recipe: str, folder: Path) -> list[ProbeTable]:
    """The tables of SEEDS, a seed a core, each with one thread. folder: where the runs go, and where cifar10 lies."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(partial(one_seed, recipe, folder), SEEDS))


def one_seed(recipe: str, folder: Path, seed: int) -> ProbeTable:
    """Pre-train with `seed` and probe on the training images of cifar10."""
    run = folder / f"{recipe}-{seed}"
    settings = [
        f"data.path={SHARED / 'imagenet_samples' / 'images'}",
        f"train.epochs={EPOCHS}",
        f"train.seed={seed}",
    ]
    mimkit.pretrain(recipe, [*settings, f"train.run={run}", "log.samples_every=20"])
    return mimkit.probe(run, [f"data.path={folder / 'cifar10' / 'train'}"], folder / f"{run.name}.json")
