"""Classifiers out and in: logits of others equal ours, classes keep their names and order, a probe is a plain head."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import mimkit
from mimkit.data.batch import Batch
from mimkit.errors import UserError
from mimkit.zoo.mae import PUBLISHED
from mimkit.zoo.rules import write

from .small_run import CLASSES, small_task

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
FINETUNED = ("task.pooling=mean",)
TOKEN = ("task.pooling=cls",)
PROBE = ("task.head=probe", "task.pooling=cls")
MEAN_PROBE = ("task.head=probe", "task.pooling=mean")
KINDS = pytest.mark.parametrize(
    "kind", [FINETUNED, TOKEN, PROBE, MEAN_PROBE], ids=["mean", "cls", "probe", "mean probe"]
)


def logits(task: Any) -> torch.Tensor:
    with torch.no_grad():
        return task.logits(Batch(IMAGES, torch.arange(2)))


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape and (a - b).abs().max() <= 1e-5 * max(1, b.abs().max())


@KINDS
def test_our_own_folder_keeps_head_and_classes(tmp_path: Path, kind: tuple[str, ...]) -> None:
    run, task = small_task(tmp_path / "run", *kind)
    folder = mimkit.export(run, "safetensors", tmp_path / "out").path
    for source in (run / "checkpoints/step-3", folder):
        model = mimkit.load(source)
        assert torch.equal(logits(model.task), logits(task)) and model.task.classes == CLASSES
        assert model.recipe.task == mimkit.load(run).recipe.task and not model.report.fresh
    card = (folder / "README.md").read_text()
    assert '"ant", "bee", "white wasp"' in card and "| val/top1 | 0.75 | 3 |" in card
    assert 'mimkit.predict("out", "photos/")' in card
    assert "trained for a task (`classify`)" in card and "pipeline_tag: image-classification" in card


@KINDS
def test_timm_classifies_as_we_do_and_gives_it_back(tmp_path: Path, kind: tuple[str, ...]) -> None:
    run, task = small_task(tmp_path / "run", *kind)
    folder = mimkit.export(run, "timm", tmp_path / "out").path
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    same(theirs(IMAGES), logits(task))
    assert theirs.pretrained_cfg["label_names"] == list(CLASSES)
    if kind != MEAN_PROBE:  # a mean of normed tokens without a norm behind it is no classifier that we train
        back = mimkit.load(folder)
        same(logits(back.task), logits(task))
        assert back.task.classes == CLASSES


@pytest.mark.parametrize("kind", [TOKEN, PROBE], ids=["cls", "probe"])
def test_transformers_classifies_as_we_do_and_gives_it_back(tmp_path: Path, kind: tuple[str, ...]) -> None:
    transformers = pytest.importorskip("transformers")
    run, task = small_task(tmp_path / "run", *kind)
    folder = mimkit.export(run, "hf", tmp_path / "out").path
    theirs, found = transformers.ViTForImageClassification.from_pretrained(folder, output_loading_info=True)
    same(theirs.eval()(IMAGES).logits, logits(task))
    assert theirs.config.id2label == dict(enumerate(CLASSES)) and not any(found.values())
    back = mimkit.load(folder)
    same(logits(back.task), logits(task))
    assert back.task.classes == CLASSES


def test_a_mean_pooled_classifier_has_no_place_in_transformers(tmp_path: Path) -> None:
    run, _ = small_task(tmp_path / "run", *FINETUNED)
    with pytest.raises(
        UserError, match="its classifier reads the class token, this one the mean of the patches"
    ):
        mimkit.export(run, "hf", tmp_path / "out")


def test_an_onnx_program_has_logits(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run, task = small_task(tmp_path / "run", *PROBE)
    folder = mimkit.export(run, "onnx", tmp_path / "out").path
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (theirs,) = session.run(["logits"], {"images": IMAGES.numpy()})
    same(torch.from_numpy(theirs), logits(task))
    assert 'session.run(["logits"]' in (folder / "README.md").read_text()
    with pytest.raises(UserError, match=r"an ONNX program.*--to safetensors"):
        mimkit.load(folder)
    assert json.loads((folder / "config.json").read_text())["classes"] == list(CLASSES)


@pytest.mark.parametrize("kind", [FINETUNED, PROBE], ids=["finetuned", "linprobe"])
def test_a_published_classifier_is_opened_with_its_head(tmp_path: Path, kind: tuple[str, ...]) -> None:
    _, task = small_task(tmp_path / "run", "encoder.name=vit:64x2x1", *kind)
    torch.save({"model": write(PUBLISHED, task.state_dict())}, tmp_path / "mae.pth")
    model = mimkit.load(tmp_path / "mae.pth")
    assert torch.equal(logits(model.task), logits(task))
    assert model.task.classes == ("0", "1", "2")  # the file names none
    assert not (model.report.aside or model.report.fresh) and model.method is None


@KINDS
def test_a_classifier_becomes_a_published_file(tmp_path: Path, kind: tuple[str, ...]) -> None:
    run, task = small_task(tmp_path / "run", *kind)
    path = mimkit.convert(run, tmp_path / "mae.pth", to="published").path
    saved = torch.load(path, weights_only=True)["model"]
    assert {name: x.shape for name, x in saved.items()} == {
        name.removeprefix("encoder."): x.shape for name, x in task.state_dict().items()
    }


def test_a_classifier_gives_its_encoder_to_another_start(tmp_path: Path) -> None:
    from mimkit.zoo.load import initialise

    run, task = small_task(tmp_path / "run", *TOKEN)
    folder = mimkit.export(run, "safetensors", tmp_path / "out").path
    encoder = mimkit.load("random:vit:32x2x4", ["encoder.patch=4", "data.size=16"]).encoder
    report = initialise(encoder, str(folder))
    assert list(report.aside) == ["the classification head"]
    assert torch.equal(encoder.norm.weight, task.encoder.norm.weight)


def test_a_head_on_one_of_timms_networks_bears_its_name_there_and_answers_alike(tmp_path: Path) -> None:
    run, task = small_task(
        tmp_path / "run", *FINETUNED, "encoder.name=timm:resnet10t", "encoder.patch=1", "data.size=32"
    )
    folder = mimkit.export(run, "timm", tmp_path / "out").path
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        same(theirs(images), task.eval().logits(Batch(images, torch.arange(2))))


def test_a_head_that_reads_other_features_than_timms_is_refused(tmp_path: Path) -> None:
    run, _ = small_task(
        tmp_path / "run", *FINETUNED, "encoder.name=timm:convnext_atto", "encoder.patch=1", "data.size=32"
    )
    with pytest.raises(UserError, match=r"reads other features. Use --to safetensors or --to onnx"):
        mimkit.export(run, "timm", tmp_path / "out")
    assert mimkit.load(mimkit.export(run, "safetensors", tmp_path / "own").path).encoder.depth == 4
