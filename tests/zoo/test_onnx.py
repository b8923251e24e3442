"""ONNX: onnxruntime answers as torch does at any batch and size, and nothing of this machine is told."""

import json
import sys
from pathlib import Path

import pytest
import torch

import mimkit
from mimkit.errors import DataError, UserError
from mimkit.zoo import onnx as zoo_onnx
from mimkit.zoo.card import Facts

from .small_run import small_run

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


def answers(folder: Path, images: torch.Tensor) -> dict[str, torch.Tensor]:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, {"images": images.numpy()})), strict=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """An export of a ViT on a rectangular grid with patches that are not square."""
    folder = tmp_path_factory.mktemp("onnx")
    run, method = small_run(folder / "run", "data.size=[8, 24]", "encoder.patch=[2, 4]")
    return mimkit.export(run, "onnx", folder / "out").path, method.encoder


@pytest.mark.parametrize(
    ("batch", "size"), [(1, (8, 24)), (2, (8, 24)), (5, (24, 8)), (1, (32, 40)), (3, (2, 4))]
)
def test_onnxruntime_answers_as_torch_does_at_any_batch_and_size(
    made: tuple[Path, torch.nn.Module], batch: int, size: tuple[int, int]
) -> None:
    folder, encoder = made
    images = torch.randn(batch, 3, *size)
    theirs, ours = answers(folder, images), encoder(images)
    wanted = {"features": ours.map(), "mean": ours.pooled("mean"), "class_token": ours.pooled("cls")}
    assert list(theirs) == list(wanted)
    for name, want in wanted.items():
        assert (theirs[name] - want).abs().max() <= 1e-5 * max(1, want.abs().max()), name


def test_the_program_says_how_images_are_prepared_and_nothing_of_this_machine(
    made: tuple[Path, torch.nn.Module],
) -> None:
    folder, _ = made
    config = json.loads((folder / "config.json").read_text())
    assert config["mean"] == [0.4, 0.5, 0.6] and config["size"] == "any, in multiples of the patch"
    assert config["outputs"]["mean"] == "(batch, 32), the mean of these"
    inside = {x.key: json.loads(x.value) for x in onnx.load(folder / "model.onnx").metadata_props}
    assert inside == config
    content = (folder / "model.onnx").read_bytes()
    assert b".py" not in content and str(Path.home()).encode() not in content
    assert "session.run" in (folder / "README.md").read_text()


def test_a_network_of_timm_takes_any_batch_of_its_size(tmp_path: Path) -> None:
    from mimkit.verbs import exchange
    from mimkit.zoo.export import Subject

    model = mimkit.load("random:timm:test_resnet", ["data.size=64"])
    exchange._write(Subject({}, model.encoder, model.recipe), "onnx", tmp_path / "out", Facts("out"))
    images = torch.randn(5, 3, 64, 64)
    assert torch.allclose(
        answers(tmp_path / "out", images)["features"], model.encoder(images).map(), atol=1e-5
    )
    assert "takes images of 64 x 64 alone" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_one_sentence_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    run, _ = small_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'mimkit\[onnx\]'") as caught:
        mimkit.export(run, "onnx", tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_program_that_answers_otherwise_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = small_run(tmp_path / "run", "encoder.class_token=false")
    monkeypatch.setattr(zoo_onnx, "TOLERANCE", -1.0)
    with pytest.raises(DataError, match="onnxruntime answers otherwise than torch: features"):
        mimkit.export(run, "onnx", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
