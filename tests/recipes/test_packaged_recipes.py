"""The packaged recipes: each says what it is for, and holds the settings of its paper."""

import re

import pytest

from mimkit.recipes import load


@pytest.mark.parametrize("name", load.names())
def test_every_packaged_recipe_reads_and_says_paper_result_time_and_command(name: str) -> None:
    recipe = load.resolve(name)
    assert recipe.name == name
    assert load.about(name) == recipe.about
    assert re.search(r"\((He|Gao) et al\. 2022, (table|section)|\(no paper\)", recipe.about)
    for word in ("Result: ", "Time: ", "Command: "):
        assert word in recipe.about
    verb = "pretrain" if recipe.task is None else "finetune"
    assert f"mimkit {verb} {name} " in recipe.about


def test_the_recipes_come_in_order_of_size() -> None:
    assert load.names()[:5] == ["mae_tiny", "mae_small", "mae_base", "mae_large", "mae_huge"]


@pytest.mark.parametrize(
    ("name", "encoder", "patch"),
    [("mae_base", "vit_base", 16), ("mae_large", "vit_large", 16), ("mae_huge", "vit_huge", 14)],
)
def test_the_papers_recipes_hold_the_papers_hyper_parameters(name: str, encoder: str, patch: int) -> None:
    recipe = load.resolve(name)
    assert (recipe.encoder.name, recipe.encoder.patch, recipe.data.size) == (
        encoder,
        (patch, patch),
        (224, 224),
    )
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.schedule.warmup_epochs) == (800, 4096, 40)
    assert (recipe.optimiser.base_lr, recipe.optimiser.betas, recipe.optimiser.weight_decay) == (
        1.5e-4,
        (0.9, 0.95),
        0.05,
    )
    assert (recipe.optimiser.eps, recipe.optimiser.clip, recipe.schedule.min_lr) == (1e-8, None, 0)
    assert recipe.pretraining.norm_pix and recipe.pretraining.mask.ratio == 0.75
    assert tuple(recipe.pretraining.decoder.model_dump().values()) == (512, 8, 16, 4.0)
    assert (recipe.data.crop_scale, recipe.data.flip, recipe.encoder.drop_path) == ((0.2, 1.0), 0.5, 0.0)


@pytest.mark.parametrize(
    ("size", "patch", "base_lr", "layer_decay", "drop_path", "epochs"),
    [
        ("base", 16, 5e-4, 0.65, 0.1, 100),
        ("large", 16, 1e-3, 0.75, 0.2, 50),
        ("huge", 14, 1e-3, 0.75, 0.3, 50),
    ],
)
def test_fine_tuning_follows_the_released_code(
    size: str, patch: int, base_lr: float, layer_decay: float, drop_path: float, epochs: int
) -> None:
    recipe = load.resolve(f"finetune_vit_{size}")
    assert (recipe.encoder.name, recipe.encoder.patch) == (f"vit_{size}", (patch, patch))
    assert (recipe.encoder.drop_path, recipe.data.size, recipe.data.crop_scale) == (
        drop_path,
        (224, 224),
        (0.08, 1.0),
    )
    part = recipe.optimiser
    assert (part.name, part.base_lr, part.betas, part.eps) == ("adamw", base_lr, (0.9, 0.999), 1e-8)
    assert (part.weight_decay, part.layer_decay, part.clip) == (0.05, layer_decay, None)
    assert (recipe.schedule.warmup_epochs, recipe.schedule.min_lr) == (5, 1e-6)
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.ema) == (epochs, 1024, None)
    task = recipe.tuning
    assert (task.head, task.pooling, task.blocks, task.smoothing) == ("linear", "mean", None, 0.1)
    assert (task.mixup, task.cutmix, task.switch, task.erasing) == (0.8, 1.0, 0.5, 0.25)
    assert (task.randaugment, task.crop) == ("rand-m9-mstd0.5-inc1", "resized")


@pytest.mark.parametrize(("size", "epochs"), [("base", 90), ("large", 50), ("huge", 50)])
def test_the_linear_probe_follows_the_released_code(size: str, epochs: int) -> None:
    recipe = load.resolve(f"linear_probe_vit_{size}")
    part = recipe.optimiser
    assert (part.name, part.base_lr, part.momentum, part.trust) == ("lars", 0.1, 0.9, 0.001)
    assert (part.weight_decay, part.layer_decay, recipe.encoder.drop_path) == (0, None, 0)
    assert (recipe.schedule.warmup_epochs, recipe.schedule.min_lr) == (10, 0)
    assert (recipe.train.epochs, recipe.train.batch_size) == (epochs, 16384)
    task = recipe.tuning
    assert (task.head, task.pooling, task.smoothing, task.crop) == ("probe", "cls", 0, "clipped")
    assert (task.mixup, task.cutmix, task.randaugment, task.erasing) == (0, 0, None, 0)


@pytest.mark.parametrize("size", ["small", "base", "base_star", "large", "huge"])
def test_mcmaes_linear_probe_is_that_of_the_base_size_for_every_size(size: str) -> None:
    recipe = load.resolve(f"linear_probe_mcmae_{size}")
    part = recipe.optimiser
    assert (part.name, part.base_lr, part.momentum, part.trust) == ("lars", 0.1, 0.9, 0.001)
    assert (part.weight_decay, part.layer_decay, recipe.encoder.drop_path) == (0, None, 0)
    assert (recipe.schedule.warmup_epochs, recipe.schedule.min_lr) == (10, 0)
    assert (recipe.encoder.name, recipe.train.epochs, recipe.train.batch_size) == (f"mcmae_{size}", 90, 4096)
    task = recipe.tuning
    assert (task.head, task.pooling, task.smoothing, task.crop) == ("probe", "mean", 0, "clipped")
    assert (recipe.data.size, recipe.data.crop_scale) == ((224, 224), (0.08, 1.0))


def test_training_from_scratch_follows_table_11() -> None:
    recipe = load.resolve("scratch_vit_base")
    part = recipe.optimiser
    assert (part.base_lr, part.betas, part.weight_decay, part.layer_decay) == (1e-4, (0.9, 0.95), 0.3, None)
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.ema) == (300, 4096, 0.9999)
    assert (recipe.schedule.warmup_epochs, recipe.encoder.drop_path, recipe.tuning.erasing) == (20, 0.1, 0)
