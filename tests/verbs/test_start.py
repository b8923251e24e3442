"""What weights to start from say about a recipe, and which of them are refused."""

from pathlib import Path

import pytest
import timm
import torch

import mimkit
from mimkit.data.normalise import IMAGENET_MEAN
from mimkit.errors import DataError, UserError
from mimkit.recipes import build
from mimkit.verbs.models import open_model
from mimkit.verbs.start import classes_of, initialise, start_of


def test_patch_size_and_statistics_come_from_the_weights(tuned: Path) -> None:
    recipe = start_of("finetune_vit_base", [f"encoder.init={tuned}", "encoder.name=vit:48x3x3"]).recipe
    assert (recipe.encoder.patch, recipe.data.size, recipe.data.channels) == ((8, 8), (32, 32), 1)
    assert recipe.data.mean == open_model(tuned).recipe.data.mean
    assert (recipe.optimiser.layer_decay, recipe.train.epochs) == (0.65, 100)  # the recipe's own affairs


def test_a_file_of_ones_own_and_overrides_stand_above_the_weights(tuned: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: finetune_vit_base\nencoder:\n  name: vit:48x3x3\ndata:\n  size: 48\n")
    recipe = start_of(mine, [f"encoder.init={tuned}"]).recipe
    assert (recipe.data.size, recipe.encoder.patch) == ((48, 48), (8, 8))
    recipe = start_of(mine, [f"encoder.init={tuned}", "data.size=64", "encoder.patch=16"]).recipe
    assert (recipe.data.size, recipe.encoder.patch) == ((64, 64), (16, 16))


def test_images_of_other_channels_are_not_normalised_as_those_of_the_weights(tuned: Path) -> None:
    overrides = [f"encoder.init={tuned}", "encoder.name=vit:48x3x3", "data.channels=3"]
    recipe = start_of("finetune_vit_base", overrides).recipe
    assert (recipe.data.channels, recipe.data.mean, recipe.encoder.patch) == (3, None, (8, 8))


def test_weights_of_another_encoder_are_named_with_the_command_that_fits(tmp_path: Path, tuned: Path) -> None:
    tiny = build.encoder(open_model("random:vit_tiny").recipe)
    torch.save(tiny.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(DataError, match=r"as vit_tiny.*`mimkit finetune finetune_vit_tiny encoder.init="):
        start_of("finetune_vit_base", [f"encoder.init={tmp_path / 'weights.pth'}"])
    with pytest.raises(DataError, match=r"`mimkit finetune linear_probe_vit_tiny encoder.init="):
        start_of("linear_probe_vit_large", [f"encoder.init={tmp_path / 'weights.pth'}"])
    with pytest.raises(DataError, match=r"48 wide.*finetune_vit_base encoder.name=vit:48x3x3"):
        start_of("finetune_vit_base", [f"encoder.init={tuned}"])


def test_weights_that_are_no_vit_are_named_by_what_they_look_like(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}, tmp_path / "resnet.pth")
    with pytest.raises(DataError, match=r"resnet.pth looks like .*ResNet"):
        start_of("finetune_vit_base", [f"encoder.init={tmp_path / 'resnet.pth'}"])


def test_a_file_of_one_of_timms_networks_starts_it_on_images_as_its_first_kernel_wants_them(
    faces: Path, tmp_path: Path
) -> None:
    torch.save({"model": timm.create_model("resnet10t", num_classes=7).state_dict()}, tmp_path / "r.pth")
    words = [f"data.path={faces}", f"encoder.init={tmp_path / 'r.pth'}"]
    with pytest.raises(
        DataError, match=r"a ResNet; .*encoder.patch=1 encoder.name=timm:resnet50`, each with timm's name"
    ):
        start_of("finetune_vit_tiny", words)
    words += ["encoder.name=timm:resnet10t", "encoder.patch=1", "train.batch_size=8", "data.shots=8"]
    recipe = start_of("finetune_vit_tiny", words).recipe
    assert (recipe.data.channels, recipe.data.mean) == (3, IMAGENET_MEAN)  # the pictures of faces are grey
    run = tmp_path / "run"
    more = ["train.epochs=1", "data.size=32", "data.workers=0", "log.writers=[]", f"train.run={run}"]
    assert mimkit.finetune("finetune_vit_tiny", [*words, *more]).steps == 2


def test_random_weights_can_be_asked_for_by_name() -> None:
    start = start_of("finetune_vit_tiny", ["encoder.init=random:vit_tiny"])
    assert start.weights is None
    with pytest.raises(UserError, match=r"encoder.name=vit_base"):
        start_of("finetune_vit_tiny", ["encoder.init=random:vit_base"])


def test_a_head_is_kept_for_the_same_classes_alone(tuned: Path) -> None:
    assert classes_of(tuned) == ("face", "other")
    start = start_of("finetune_vit_tiny", [f"encoder.init={tuned}", "encoder.name=vit:48x3x3"])
    trained = open_model(tuned).task
    assert trained is not None
    same = build.task(start.recipe, ("face", "other"))
    fresh = same.head.weight.detach().clone()
    initialise(same, start, ("face", "other"))
    assert torch.equal(same.head.weight, trained.head.weight)
    others = build.task(start.recipe, ("cat", "dog"))
    initialise(others, start, ("cat", "dog"))
    assert torch.equal(others.head.weight, fresh)
    assert torch.equal(others.encoder.blocks[0].mlp.fc1.weight, trained.encoder.blocks[0].mlp.fc1.weight)
