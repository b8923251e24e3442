"""Exports: what others load answers as ours does, comes back equal, and what a format cannot hold is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open

import mimkit
from mimkit.errors import UserError

from .small_run import small_run, tokens

transformers = pytest.importorskip("transformers")
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def exported(tmp_path: Path, to: str, *overrides: str, **options: Any) -> tuple[Path, Any]:
    run, method = small_run(tmp_path / "run", *overrides)
    return mimkit.export(run, to, tmp_path / to, **options).path, method


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape and (a - b).abs().max() <= 1e-5 * max(1, b.abs().max())


# ---- ours


def test_our_own_folder_is_loaded_back_whole(tmp_path: Path) -> None:
    folder, method = exported(tmp_path, "safetensors", "data.size=[8, 32]", "encoder.patch=[2, 4]")
    model = mimkit.load(folder)
    for name, tensor in method.state_dict().items():
        assert torch.equal(model.method.state_dict()[name], tensor)
    assert model.recipe.data.mean == (0.4, 0.5, 0.6) and model.recipe.data.size == (8, 32)
    assert model.recipe.method == method_recipe(tmp_path) and model.decoder is None
    assert not (model.report.resized or model.report.aside or model.report.fresh)
    assert mimkit.load(folder / "model.safetensors").recipe == model.recipe


def method_recipe(tmp_path: Path) -> Any:
    return mimkit.load(tmp_path / "run").recipe.method


def test_an_export_is_a_start_for_another_size(tmp_path: Path) -> None:
    folder, _ = exported(tmp_path, "safetensors", "data.size=[8, 32]", decoder=False)
    model = mimkit.load(folder, ["data.size=[16, 32]"])
    assert [str(change) for change in model.report.resized] == ["encoder.pos_embed 2 x 8 -> 4 x 8 (bicubic)"]
    assert model.method is None and model.decoder == "safetensors holds an encoder alone"


def test_the_moving_average_is_what_is_exported(tmp_path: Path) -> None:
    run, method = small_run(tmp_path / "run", "train.ema=0.5", average=True)
    mimkit.export(run, "safetensors", tmp_path / "out")
    saved = mimkit.load(tmp_path / "out").encoder.norm.weight
    assert torch.equal(saved, method.encoder.norm.weight * 0.5)
    assert "- the moving average of the weights is used" in (tmp_path / "out/README.md").read_text()


# ---- timm


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("data.size=[8, 32]", "encoder.patch=[2, 4]"),
        ("encoder.class_token=false",),
        ("encoder.layer_scale=0.1", "encoder.positions=learned"),
        ("data.channels=1", "data.mean=[0.5]", "data.std=[0.2]"),
        ("encoder.name=vit:32x2x4x50",),
    ],
    ids=["plain", "rectangles", "no class token", "layer scale", "grey", "narrow MLP"],
)
def test_timm_answers_as_we_do_and_gives_it_back(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    folder, method = exported(tmp_path, "timm", *overrides)
    config = json.loads((folder / "config.json").read_text())
    height, width = mimkit.load(tmp_path / "run").recipe.data.size
    images = torch.randn(2, method.encoder.channels, height, width)
    by_path = timm.create_model(
        config["architecture"],
        num_classes=0,
        checkpoint_path=folder / "model.safetensors",
        **config["model_args"],
    )
    by_folder = timm.create_model(f"local-dir:{folder}", pretrained=True)
    want = tokens(method.encoder, images)
    for theirs in (by_path.eval(), by_folder.eval()):
        same(theirs.forward_features(images), want)
    assert tuple(by_folder.pretrained_cfg["mean"]) == mimkit.load(tmp_path / "run").recipe.data.mean

    back = mimkit.load(folder)
    assert torch.equal(tokens(back.encoder, images), want)
    assert back.recipe.data == mimkit.load(tmp_path / "run").recipe.data.model_copy(
        update={"path": None, "workers": back.recipe.data.workers}
    )


def test_a_named_variant_goes_by_its_name_in_timm(tmp_path: Path) -> None:
    folder, method = exported(tmp_path, "timm", "encoder.name=vit_tiny", "encoder.patch=8")
    theirs = timm.create_model(
        "vit_tiny_patch16_224",
        patch_size=8,
        img_size=16,
        num_classes=0,
        checkpoint_path=str(folder / "model.safetensors"),
    )
    same(theirs.eval().forward_features(IMAGES), tokens(method.encoder, IMAGES))


def test_what_timm_saves_is_loaded_with_its_mean_and_answers_as_timm_does(tmp_path: Path) -> None:
    theirs = timm.create_model(
        "vit_tiny_patch16_224", num_classes=5, img_size=(16, 32), patch_size=8, depth=2
    ).eval()
    timm.models.save_for_hf(theirs, tmp_path / "saved", model_args={"img_size": (16, 32)})
    model = mimkit.load(tmp_path / "saved")
    images = torch.randn(2, 3, 16, 32)
    same(tokens(model.encoder, images), theirs.forward_features(images))
    assert model.recipe.data.mean == (0.5, 0.5, 0.5) and model.recipe.data.size == (16, 32)
    same(model.task.head(tokens(model.encoder, images)[:, 0]), theirs(images))
    assert model.task.classes == tuple("01234") and not model.report.aside


def test_a_network_that_timm_computes_goes_out_and_comes_back(tmp_path: Path) -> None:
    ours = mimkit.load("random:timm:test_resnet")
    for parameter in ours.encoder.parameters():
        parameter.data.normal_(std=0.1)
    images = torch.randn(2, 3, 64, 64)
    want = ours.encoder(images).map()
    from mimkit.verbs import exchange
    from mimkit.zoo.card import Facts
    from mimkit.zoo.export import Subject

    tensors = {f"encoder.{name}": x for name, x in ours.encoder.state_dict().items()}
    for to in ("timm", "safetensors"):
        subject = Subject(tensors, ours.encoder, ours.recipe)
        exchange._write(subject, to, tmp_path / to, Facts(to))
        assert torch.equal(mimkit.load(tmp_path / to).encoder(images).map(), want)
    theirs = timm.create_model(f"local-dir:{tmp_path}/timm", pretrained=True).eval()
    same(theirs.forward_features(images), want)


# ---- transformers


def test_transformers_reconstructs_as_we_do_and_gives_it_back(tmp_path: Path) -> None:
    from mimkit.masks import from_hidden

    folder, method = exported(tmp_path, "hf")
    theirs, found = transformers.ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()) and theirs.config.norm_pix_loss
    out = theirs.eval()(IMAGES, noise=torch.rand(2, 16))
    mask = from_hidden(out.mask.bool().view(2, 4, 4), (4, 4))
    same(method.predict_all(IMAGES, mask), out.logits)
    back = mimkit.load(folder)
    assert torch.equal(back.method.predict_all(IMAGES, mask), method.predict_all(IMAGES, mask))
    assert back.recipe.data.std == (0.2, 0.25, 0.3) and back.report.norm_pix is True
    theirs.save_pretrained(tmp_path / "saved")
    again = mimkit.load(f"hf:{tmp_path / 'saved'}")
    assert torch.equal(tokens(again.encoder, IMAGES), tokens(method.encoder, IMAGES))


@pytest.mark.parametrize("size", [(16, 16), (8, 32)])
def test_transformers_features_are_ours(tmp_path: Path, size: tuple[int, int]) -> None:
    folder, method = exported(tmp_path, "hf", f"data.size={list(size)}", decoder=False)
    theirs, found = transformers.ViTModel.from_pretrained(
        folder, add_pooling_layer=False, output_loading_info=True
    )
    images = torch.randn(2, 3, *size)
    same(theirs.eval()(images).last_hidden_state, tokens(method.encoder, images))
    assert not any(found.values())
    assert torch.equal(tokens(mimkit.load(folder).encoder, images), tokens(method.encoder, images))
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert list(processor.image_mean) == [0.4, 0.5, 0.6]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("encoder.class_token=false",), "always has a class token"),
        (("encoder.layer_scale=0.1",), "no layer scale"),
        (("encoder.patch=[2, 4]",), "square patches, these are 2 x 4"),
        (("data.size=[8, 16]",), "square images, these are 8 x 16 (--no-decoder"),
    ],
)
def test_what_transformers_cannot_hold_is_refused_with_what_can(
    tmp_path: Path, overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        exported(tmp_path, "hf", *overrides)
    assert said in str(caught.value) and "--to timm, --to safetensors or --to onnx" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# ---- the folder


def test_the_card_tells_what_a_stranger_needs_and_no_path_of_this_machine(tmp_path: Path) -> None:
    folder, _ = exported(
        tmp_path, "timm", "encoder.init=/home/somebody/mae.pth", "log.probe.path=/home/somebody/faces"
    )
    text = (folder / "README.md").read_text()
    assert "| 2 | 0.6 | 0.3 |" in text and "3 steps of 8 images, 24 crops of `photos`" in text
    assert "| 2 | mean of the patches |  | 87.5 ± 1.0 |" in text and "| 1 | class token | 50.0 |  |" in text
    assert "| loss | 0.5 | 3 |" in text and "path: photos" in text
    assert "began from `mae.pth`" in text and "on `faces`" in text
    assert "somebody" not in text and "library_name: timm" in text
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_nothing_that_is_there_is_written_over(tmp_path: Path) -> None:
    run, _ = small_run(tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    for out, said in (
        ("full", "is not empty"),
        ("full/mine.txt", "is a file"),
        ("model.onnx", "named like a file"),
    ):
        with pytest.raises(UserError, match=said):
            mimkit.export(run, "safetensors", tmp_path / out)
    assert sorted(path.name for path in tmp_path.rglob("*") if run not in path.parents) == [
        "empty",
        "full",
        "mine.txt",
        "run",
    ]
    mimkit.export(run, "safetensors", tmp_path / "empty")
    assert (tmp_path / "empty/README.md").exists()


def test_a_place_that_cannot_be_written_ends_in_one_sentence(tmp_path: Path) -> None:
    run, _ = small_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        mimkit.export(run, "safetensors", tmp_path / "file/out")


def test_an_unknown_format_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"safetensors, timm, hf, onnx\. Did you mean 'onnx'"):
        mimkit.export(tmp_path, "onx", tmp_path / "out")
