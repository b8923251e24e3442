"""`import mimkit.timm`: our encoders in timm's registry, with timm's ways of using and loading them."""

from pathlib import Path

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

import mimkit
import mimkit.timm
from mimkit.encoders.vit import VARIANTS
from mimkit.errors import DataError, UserError
from mimkit.zoo.mae import PUBLISHED
from mimkit.zoo.rules import write

from .small_run import small_run, tokens

TINY = {"img_size": 16, "patch_size": 8}
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    return small_run(
        tmp_path_factory.mktemp("timm") / "run", "encoder.name=vit_tiny", "encoder.patch=8", "train.epochs=1"
    )


def test_every_plain_encoder_is_registered_once() -> None:
    wanted = {f"mimkit_{name}_patch{row.patch}" for name, row in VARIANTS.items()}
    assert set(timm.list_models("mimkit_*")) == wanted == set(mimkit.timm.__all__)
    assert mimkit.timm.timm_registry.register("mimkit.timm") == mimkit.timm.__all__
    assert not timm.list_models("mimkit_*", pretrained=True)


def test_features_only_gives_the_maps_of_our_encoder() -> None:
    model = timm.create_model("mimkit_vit_tiny_patch16", features_only=True, **TINY).eval()
    (features,) = model(IMAGES)
    assert torch.equal(features, model.model.encoder(IMAGES).map())
    assert model.feature_info.channels() == [192] and model.feature_info.reduction() == [8]
    wide = model(torch.randn(1, 3, 24, 40))  # any size: the table adapts
    assert wide[0].shape == (1, 192, 3, 5)


def test_any_blocks_can_be_asked_for() -> None:
    model = timm.create_model(
        "mimkit_vit_tiny_patch16", features_only=True, out_indices=(2, 11), **TINY
    ).eval()
    inner, last = model(IMAGES)
    whole = model.model.encoder(IMAGES, layers=[3])
    assert torch.equal(last, whole.map())
    assert torch.allclose(inner, model.model.encoder.norm(whole.layers[3].levels[0]).movedim(-1, 1))


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("source", ["run", "safetensors", "timm", "published"])
def test_weights_of_every_kind_load_through_checkpoint_path(
    tmp_path: Path, run: tuple[Path, torch.nn.Module], source: str, features_only: bool
) -> None:
    folder, method = run
    if source == "run":
        path = folder / "checkpoints/step-3/model.safetensors"
    elif source == "published":
        path = tmp_path / "mae.pth"
        torch.save({"model": write(PUBLISHED, method.state_dict())}, path)
    else:
        path = mimkit.export(folder, source, tmp_path / source).path / "model.safetensors"
    model = timm.create_model(
        "mimkit_vit_tiny_patch16", features_only=features_only, checkpoint_path=str(path), **TINY
    ).eval()
    encoder = (model.model if features_only else model).encoder
    assert torch.equal(tokens(encoder, IMAGES), tokens(method.encoder, IMAGES))


def test_a_checkpoint_of_the_model_itself_loads_as_it_is(tmp_path: Path) -> None:
    first = timm.create_model("mimkit_vit_tiny_patch16", num_classes=3, **TINY).eval()
    torch.save(first.state_dict(), tmp_path / "own.pth")
    second = timm.create_model(
        "mimkit_vit_tiny_patch16", num_classes=3, checkpoint_path=str(tmp_path / "own.pth"), **TINY
    ).eval()
    assert torch.equal(first(IMAGES), second(IMAGES))


def test_a_classifier_starts_from_an_encoder_with_a_new_head(
    run: tuple[Path, torch.nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    path = run[0] / "checkpoints/step-3/model.safetensors"
    with caplog.at_level("INFO", "mimkit"):
        model = timm.create_model("mimkit_vit_tiny_patch16", num_classes=3, checkpoint_path=str(path), **TINY)
    assert model(IMAGES).shape == (2, 3)
    assert "the file holds no classification head" in caplog.text
    model.reset_classifier(0)
    assert model(IMAGES).shape == (2, 192)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    with pytest.raises(DataError, match="looks like"):
        timm.create_model("mimkit_vit_tiny_patch16", checkpoint_path=str(tmp_path / "w.pth"), **TINY)


def test_timms_helpers_know_its_layers() -> None:
    model = timm.create_model("mimkit_vit_tiny_patch16", num_classes=3, **TINY)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    assert (
        len({group["lr_scale"] for group in groups}) == 14
    )  # stem, 12 blocks with the norm behind the last, head
    model.set_grad_checkpointing()
    assert model.encoder.checkpointing
    tokens_, maps = model.eval().forward_intermediates(IMAGES, indices=2, return_prefix_tokens=True)
    assert (
        tokens_.shape == (2, 5, 192)
        and maps[1][0].shape == (2, 192, 2, 2)
        and maps[1][1].shape == (2, 1, 192)
    )


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(UserError, match="known are 'avg', 'token' and ''"):
        timm.create_model("mimkit_vit_tiny_patch16", global_pool="max", **TINY)
