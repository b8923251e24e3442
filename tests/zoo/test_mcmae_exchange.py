"""MCMAE's files through `mimkit.load`, `convert` and `export`: small models of every published kind, heads included."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mimkit
from mimkit import encoders
from mimkit.encoders.mcmae import MCMAEEncoder
from mimkit.engine import checkpoint
from mimkit.errors import DataError, UserError
from mimkit.methods.mcmae import MCMAE
from mimkit.recipes import build
from mimkit.recipes import load as recipes
from mimkit.tasks.classify import Classifier
from mimkit.tasks.necks import Coarser, SimplePyramid
from mimkit.zoo import publisher
from mimkit.zoo.load import initialise
from mimkit.zoo.rules import write

ONE_HEAD, TWO_HEADS = "mcmae:8-12-16x1-1-4x1", "mcmae:8-12-16x1-1-4x2"
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
KINDS = ("encoder", "training", "classifier", "probe", "detection", "vitdet", "segmentation")
DENSE = ("detection", "vitdet", "segmentation")
RECIPE = (
    f"encoder.name={ONE_HEAD}", "data.size=64", "data.channels=3", "data.mean=[0.4, 0.5, 0.6]",
    "data.std=[0.2, 0.2, 0.2]", "method.decoder.width=16", "method.decoder.depth=2", "method.decoder.heads=2",
    "train.batch_size=8", "train.micro_batch=8",
)  # fmt: skip


def random(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.2)
    return module.eval()


def dense(form: str) -> MCMAEEncoder:
    options = {} if form == "segmentation" else {"window": (2, 2)}
    if form == "vitdet":
        options |= {"global_blocks": (1, 2), "table": (2, 2)}
    return random(encoders.build(TWO_HEADS, size=(64, 64), form=form, **options))


def parts(kind: str) -> tuple[MCMAEEncoder, dict[str, Tensor]]:
    """The encoder, and everything that a file of this kind holds, by our names."""
    if kind == "encoder":
        encoder = random(encoders.build(ONE_HEAD, size=(64, 64)))
        return encoder, {f"encoder.{name}": x for name, x in encoder.state_dict().items()}
    if kind == "training":
        method = random(build.method(recipes.resolve("mcmae_base", RECIPE)))
        return method.encoder, dict(method.state_dict())
    if kind in ("classifier", "probe"):
        encoder = encoders.build(ONE_HEAD, size=(64, 64))
        task = random(Classifier(encoder, ["ant", "bee"], probe=kind == "probe"))
        return task.encoder, dict(task.state_dict())
    encoder = dense(kind)
    heads = {
        "detection": "detector.roi_heads.box_head.fc1.weight",
        "vitdet": "detector.roi_heads.box_head.fc1.weight",
    }
    tensors = {f"encoder.{name}": x for name, x in encoder.state_dict().items()}
    tensors[heads.get(kind, "segmenter.decode_head.conv_seg.weight")] = torch.randn(4, 3)
    if kind == "detection":
        tensors["detector.fpn_lateral2.weight"] = torch.randn(6, 8, 1, 1)
    else:
        neck = SimplePyramid(16, 6) if kind == "vitdet" else Coarser(16, "conv")
        tensors |= {f"neck.{name}": x for name, x in random(neck).state_dict().items()}
    return encoder, tensors


def published(kind: str, path: Path) -> tuple[MCMAEEncoder, Path]:
    encoder, tensors = parts(kind)
    family = publisher(tensors)
    torch.save({family.container: write(family, tensors)}, path)
    return encoder, path


def same(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> bool:
    return set(got) == set(want) and all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_file_opens_as_the_encoder_that_it_holds(kind: str, tmp_path: Path) -> None:
    encoder, file = published(kind, tmp_path / "file.pth")
    model = mimkit.load(file)
    for got, want in zip(model.encoder(IMAGES).levels, encoder(IMAGES).levels, strict=True):
        torch.testing.assert_close(got, want)
    assert model.recipe.encoder.name == (TWO_HEADS if kind in DENSE else ONE_HEAD)
    assert (model.method is not None) == (kind == "training")
    assert (model.task is not None) == (kind in ("classifier", "probe"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_file_becomes_mimkits_own_and_goes_back_unchanged(kind: str, tmp_path: Path) -> None:
    encoder, file = published(kind, tmp_path / "file.pth")
    own = mimkit.convert(file, tmp_path / "own")
    torch.testing.assert_close(mimkit.load(own.path).encoder(IMAGES).levels[-1], encoder(IMAGES).levels[-1])
    back = mimkit.convert(own.path, tmp_path / "back.pth", to="published")
    before, after = (torch.load(path, weights_only=True) for path in (file, back.path))
    assert set(before) == set(after)
    container = next(iter(before))
    assert same(after[container], before[container])


def run_folder(folder: Path, *overrides: str) -> tuple[Path, MCMAE]:
    recipe = recipes.resolve("mcmae_base", [*RECIPE, *overrides])
    method = random(build.method(recipe))
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipes.dump(recipe))
    checkpoint.save(folder, checkpoint.State(step=3, images=24), method)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 3, "loss": 0.5}) + "\n")
    return folder, method


def test_a_run_goes_out_as_a_published_training_file_and_comes_back(tmp_path: Path) -> None:
    run, method = run_folder(tmp_path / "run")
    file = mimkit.convert(run, tmp_path / "run.pth", to="published").path
    names = torch.load(file, weights_only=True)["model"]
    assert "stage1_output_decode.weight" in names and names["blocks1.0.conv1.weight"].ndim == 4
    opened = mimkit.load(file, ["method.decoder.heads=2"])
    assert same(opened.method.state_dict(), method.state_dict()) and opened.decoder is None


def test_a_single_scale_run_is_known_by_what_it_lacks(tmp_path: Path) -> None:
    run, method = run_folder(tmp_path / "run", "method.multi_scale=false")
    file = mimkit.convert(run, tmp_path / "run.pth", to="published").path
    assert same(mimkit.load(file).method.state_dict(), method.state_dict())


def test_an_export_keeps_form_and_windows(tmp_path: Path) -> None:
    encoder, file = published("vitdet", tmp_path / "file.pth")
    exported = mimkit.export(file, "safetensors", tmp_path / "out")
    opened = mimkit.load(exported.path)
    assert opened.recipe.encoder.window == (2, 2) and opened.recipe.encoder.global_blocks == (1, 2)
    torch.testing.assert_close(opened.encoder(IMAGES).levels[-1], encoder(IMAGES).levels[-1])


def test_the_grid_of_a_rectangle_is_never_taken_for_a_square(tmp_path: Path) -> None:
    run, method = run_folder(tmp_path / "run", "data.size=[32, 128]", "encoder.positions=learned")
    opened = mimkit.load(mimkit.export(run, "safetensors", tmp_path / "out").path)
    assert opened.encoder.grid == (2, 8)  # 16 units
    assert same(opened.encoder.state_dict(), method.encoder.state_dict())
    file = mimkit.convert(run, tmp_path / "run.pth", to="published").path
    again = mimkit.load(file, ["data.size=[32, 128]", "encoder.positions=learned"])
    assert again.encoder.grid == (2, 8)


@pytest.mark.parametrize("kind", ["classifier", "detection"])
def test_an_onnx_program_answers_as_torch_does(kind: str, tmp_path: Path) -> None:
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed)
    import onnxruntime

    encoder, file = published(kind, tmp_path / "file.pth")
    mimkit.export(file, "onnx", tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    found, *_ = session.run(None, {"images": IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), encoder(IMAGES).map(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("to", ["timm", "hf"])
def test_formats_that_know_no_mcmae_say_what_works(to: str, tmp_path: Path) -> None:
    _, file = published("encoder", tmp_path / "file.pth")
    with pytest.raises(
        UserError, match=r"cannot express this model: .*Use --to safetensors or --to onnx instead"
    ):
        mimkit.export(file, to, tmp_path / "out")


def test_an_encoder_alone_has_no_reconstruction(tmp_path: Path) -> None:
    _, file = published("encoder", tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"no reconstruction to draw .* holds an encoder alone"):
        mimkit.reconstruct(file, path=tmp_path, out=tmp_path / "x.png")


def test_a_file_opens_in_the_form_that_it_was_trained_in(tmp_path: Path) -> None:
    _, classifier = published("classifier", tmp_path / "classifier.pth")
    with pytest.raises(
        UserError,
        match=r"classifier\.pth was trained in the form 'classifier', .*from a file of pre-training \(encoder\.init=\)",
    ):
        mimkit.load(classifier, ["encoder.form=detection"])
    _, detector = published("detection", tmp_path / "detector.pth")
    with pytest.raises((UserError, DataError), match=r"detector\.pth was trained in the form 'detection'"):
        mimkit.load(
            detector, ["encoder.form=segmentation", "encoder.window=null", "encoder.global_blocks=null"]
        )


@pytest.mark.parametrize("form", ["classifier", *DENSE])
@pytest.mark.parametrize("kind", KINDS)
def test_pre_training_starts_any_form_and_what_was_trained_for_a_task_its_own_alone(
    kind: str, form: str, tmp_path: Path
) -> None:
    """A detector's file does not start a classifier, nor a classifier's file an encoder of dense features."""
    _, file = published(kind, tmp_path / "file.pth")
    options = {"window": (2, 2), "global_blocks": (1, 2)} if form in ("detection", "vitdet") else {}
    name = TWO_HEADS if kind in DENSE or form != "classifier" else ONE_HEAD
    fresh = encoders.build(name, size=(64, 64), form=form, **options)
    before = {name: x.clone() for name, x in fresh.state_dict().items()}
    allowed = kind in ("encoder", "training") or form == (kind if kind in DENSE else "classifier")
    if allowed:
        report = initialise(fresh, str(file))
        assert "encoder.blocks1.0.conv1.weight" in report.loaded
        return
    said = (
        rf"of the form '{kind}', with relative" if kind in DENSE else "is a trained classifier, whose encoder"
    )
    with pytest.raises(
        DataError, match=rf"file\.pth .*{said}.*; set encoder\.form=.*, or start from a file of pre"
    ):
        initialise(fresh, str(file))
    assert same(fresh.state_dict(), before)


def test_a_second_version_of_the_model_is_refused(tmp_path: Path) -> None:
    _, tensors = parts("encoder")
    torch.save(
        {"model": write(publisher(tensors), tensors) | {"cls_token": torch.zeros(1, 1, 16)}},
        tmp_path / "v2.pth",
    )
    with pytest.raises(DataError, match="ConvMAE-v2, another model than MCMAE"):
        mimkit.load(tmp_path / "v2.pth")


@pytest.mark.parametrize("form", DENSE)
def test_pre_training_takes_no_form_for_dense_features(form: str) -> None:
    with pytest.raises(UserError, match=rf"encoder\.form={form}: .* pre-train with form=classifier"):
        build.method(recipes.resolve("mcmae_base", [*RECIPE, f"encoder.form={form}"]))
