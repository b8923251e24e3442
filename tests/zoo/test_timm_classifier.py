"""Classifiers on timm's networks: out to timm and to our own folder, and back with head, pooling and class names."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

import mimkit
from mimkit import encoders
from mimkit.data.batch import Batch
from mimkit.errors import DataError, UserError
from mimkit.verbs.models import open_model
from mimkit.zoo.load import initialise

from .small_run import CLASSES, small_task

MEAN, TOKEN = "task.pooling=mean", "task.pooling=cls"
RESNET, VIT = "resnet10t", "vit_tiny_patch16_224"
FIVE = ("data.channels=5", "data.mean=[0.1, 0.2, 0.3, 0.4, 0.5]", "data.std=[0.5, 0.4, 0.3, 0.2, 0.1]")
FORMATS = ("safetensors", "timm")


def tuned(folder: Path, name: str, *overrides: str, size: str = "32") -> tuple[Path, Any]:
    return small_task(folder, f"encoder.name=timm:{name}", "encoder.patch=1", f"data.size={size}", *overrides)


def logits(task: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        return task.eval().logits(Batch(images, torch.arange(len(images))))


def same(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape and (a - b).abs().max() <= 1e-5 * max(1, b.abs().max())


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    ("name", "overrides", "size"),
    [
        (RESNET, (MEAN,), "32"),
        (RESNET, (MEAN, *FIVE), "32"),
        (VIT, (MEAN,), "[32, 64]"),
        (VIT, (TOKEN,), "32"),
        ("swin_tiny_patch4_window7_224", (MEAN,), "64"),
    ],
    ids=["resnet", "five channels", "vit mean", "vit token", "swin"],
)
def test_a_classifier_comes_back_with_its_classes_and_answers_as_before(
    tmp_path: Path, to: str, name: str, overrides: tuple[str, ...], size: str
) -> None:
    run, task = tuned(tmp_path / "run", name, *overrides, size=size)
    folder = mimkit.export(run, to, tmp_path / "out").path
    back = mimkit.load(folder)
    images = torch.randn(2, back.recipe.data.channels, *back.recipe.data.size)
    same(logits(back.task, images), logits(task, images))
    assert back.task.classes == CLASSES and back.recipe.data.size == mimkit.load(run).recipe.data.size
    assert back.recipe.data.mean == mimkit.load(run).recipe.data.mean
    if to == "timm":
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        same(theirs(images), logits(task, images))


def test_a_mean_of_normed_tokens_comes_back_from_timm_as_the_probe_that_it_is(tmp_path: Path) -> None:
    run, task = small_task(tmp_path / "run", "task.head=probe", MEAN)
    back = mimkit.load(mimkit.export(run, "timm", tmp_path / "out").path)
    images = torch.randn(2, 3, 16, 16)
    same(logits(back.task, images), logits(task, images))
    assert back.task.classes == CLASSES and back.recipe.task.head == "probe"


def test_what_timm_saves_of_one_of_its_classifiers_is_opened_with_its_head(tmp_path: Path) -> None:
    theirs = timm.create_model(RESNET, num_classes=4).eval()
    timm.models.save_for_hf(theirs, tmp_path / "saved", model_config={"label_names": list("abcd")})
    back = mimkit.load(tmp_path / "saved", ["data.size=32"])
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        same(logits(back.task, images), theirs(images))
    assert back.task.classes == tuple("abcd") and not (back.report.aside or back.report.fresh)


def test_a_head_that_reads_other_features_leaves_the_encoder_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = timm.create_model("convnext_atto", num_classes=4).eval()
    timm.models.save_for_hf(theirs, tmp_path / "saved")
    with caplog.at_level(logging.INFO):
        back = mimkit.load(tmp_path / "saved", ["data.size=32"])
    assert back.task is None and list(back.report.aside) == ["the classification head"]
    assert "the head of timm's convnext_atto reads other features than a classifier here" in caplog.text


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", [RESNET, VIT])
def test_an_exported_classifier_gives_its_encoder_to_another_start(
    tmp_path: Path, name: str, to: str
) -> None:
    run, task = tuned(tmp_path / "run", name, MEAN)
    folder = mimkit.export(run, to, tmp_path / "out").path
    encoder = mimkit.load(f"random:timm:{name}", ["data.size=32"]).encoder
    report = initialise(encoder, str(folder))
    assert list(report.aside) == ["the classification head"] and not report.fresh
    images = torch.randn(2, 3, 32, 32)
    same(encoder(images).pooled(), task.encoder(images).pooled())


def test_position_table_and_first_kernel_of_timms_networks_are_fitted_and_reported(tmp_path: Path) -> None:
    run, task = tuned(tmp_path / "run", VIT, MEAN, size="[32, 96]")
    larger = encoders.build(f"timm:{VIT}", channels=1, size=(64, 48))
    report = initialise(larger, str(run))
    assert [str(change) for change in report.resized] == [
        "encoder.model.patch_embed.proj.weight 3 channels -> 1 (summed)",
        "encoder.model.pos_embed 2 x 6 -> 4 x 3 (bicubic)",
    ]
    run, task = tuned(tmp_path / "other", RESNET, MEAN)
    grey = encoders.build(f"timm:{RESNET}", channels=1).eval()
    report = initialise(grey, str(run))
    assert [change.after for change in report.resized] == ["1"]
    image = torch.randn(1, 1, 32, 32)
    same(grey(image).pooled(), task.encoder(image.expand(-1, 3, -1, -1)).pooled())


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        (
            {"architecture": "resnet10"},
            UserError,
            r"names the architecture 'resnet10', which timm does not know; known are .*Did you mean 'resnet10t'\?",
        ),
        (
            {"architecture": "resnet10t.mae"},
            UserError,
            r"'resnet10t.mae': Invalid .* Write 'resnet10t' there",
        ),
        (
            {"architecture": ["resnet10t"]},
            DataError,
            r"gives architecture as \['resnet10t'\], and it must be",
        ),
        ({"architecture": "resnet10t", "pretrained_cfg": 5}, DataError, "gives pretrained_cfg as 5"),
        (
            {"architecture": "convnext_atto"},
            DataError,
            r"correct it if .* looks like a ResNet and does not fit",
        ),
    ],
)
def test_a_configuration_with_a_wrong_architecture_is_named_with_what_is_known(
    config: dict[str, object], error: type[Exception], says: str, tmp_path: Path
) -> None:
    save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=says) as raised:
        open_model(tmp_path)
    assert str(raised.value).startswith(str(tmp_path / "config.json"))
