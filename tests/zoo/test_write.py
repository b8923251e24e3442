"""`mimkit convert`: every published file under our names and back, with nothing missing, left over or computed."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mimkit
from mimkit.errors import DataError, UserError
from mimkit.verbs import exchange
from mimkit.zoo.mae import PUBLISHED
from mimkit.zoo.rules import write
from mimkit.zoo.weights import Weights

from .compact import expand
from .small_run import small_run, tokens

ENTRIES = {
    name: expand(rows)
    for name, rows in json.loads(Path(__file__).with_name("published.json").read_text()).items()
}


# Those of transformers hold query, key and value apart, and joining them takes memory: the smallest stands for them
@pytest.mark.parametrize(
    "entry", [x for x in ENTRIES if not x.startswith(("transformers_vit_mae_l", "transformers_vit_mae_h"))]
)
def test_every_published_file_is_converted_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    file = {name: torch.zeros(()).expand(shape) for name, shape in ENTRIES[entry].items()}  # four bytes each
    hub = entry.startswith("transformers")
    weights = Weights(file, entry, heads=None, decoder_heads=16 if hub else None)
    monkeypatch.setattr(exchange, "open_source", lambda _: weights)
    written: dict[str, tuple[int, ...]] = {}

    def keep(_: Path, tensors: dict[str, torch.Tensor]) -> None:
        written.update({name: tuple(x.shape) for name, x in tensors.items()})

    monkeypatch.setattr(exchange, "save_tensors", keep)
    result = mimkit.convert("file", tmp_path / "out")
    assert hub or len(written) == len(file)
    size = next(size for size in ("base", "large", "huge") if size in entry)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["encoder"]["name"] == f"vit_{size}"
    assert (config["method"] is not None) == any("decoder" in name for name in file)

    back: dict[str, tuple[int, ...]] = {}
    monkeypatch.setattr(
        exchange,
        "save_published",
        lambda _, ours: back.update({n: tuple(x.shape) for n, x in write(PUBLISHED, ours).items()}),
    )
    mimkit.convert("file", tmp_path / "back.pth", to="published")
    assert len(back) == len(written)
    if not hub:
        assert back == ENTRIES[entry]
    assert not result.report.aside or "finetuned" in entry or "linprobe" in entry


def test_a_file_goes_through_our_folder_and_back_unchanged(tmp_path: Path) -> None:
    _, method = small_run(tmp_path / "run", "encoder.name=vit:64x2x1", "method.decoder.heads=16")
    published = write(PUBLISHED, method.state_dict())
    torch.save({"model": published, "args": argparse.Namespace(lr=1), "epoch": 3}, tmp_path / "mae.pth")
    folder = mimkit.convert(tmp_path / "mae.pth", tmp_path / "ours").path
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert set(load_file(folder / "model.safetensors")) == set(method.state_dict())
    back = mimkit.convert(folder, tmp_path / "deep/back.pth", to="published").path
    again = torch.load(back, weights_only=True)
    assert list(again) == ["model"] and set(again["model"]) == set(published)
    assert all(torch.equal(again["model"][name], x) for name, x in published.items())
    assert "Converted from mae.pth." in (folder / "README.md").read_text()


def test_a_fine_tuned_file_keeps_its_head(tmp_path: Path) -> None:
    _, method = small_run(tmp_path / "run", "encoder.name=vit:64x2x1")
    tensors = {
        n: x
        for n, x in write(PUBLISHED, method.state_dict()).items()
        if "decoder" not in n and n != "mask_token"
    }
    tensors["fc_norm.weight"], tensors["fc_norm.bias"] = tensors.pop("norm.weight"), tensors.pop("norm.bias")
    tensors |= {"head.weight": torch.randn(5, 64), "head.bias": torch.randn(5)}
    torch.save({"model": tensors}, tmp_path / "mae_finetuned.pth")
    mimkit.convert(tmp_path / "mae_finetuned.pth", tmp_path / "ours")
    ours = load_file(tmp_path / "ours/model.safetensors")
    assert torch.equal(ours["head.weight"], tensors["head.weight"]) and "fc_norm.bias" in ours
    mimkit.convert(tmp_path / "ours", tmp_path / "back.pth", to="published")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert set(back) == set(tensors) and all(torch.equal(back[name], x) for name, x in tensors.items())


def test_a_run_becomes_a_published_file_with_its_moving_average(tmp_path: Path) -> None:
    run, method = small_run(tmp_path / "run", "train.ema=0.5", average=True)
    path = mimkit.convert(run, tmp_path / "mae.pth", to="published").path
    saved = torch.load(path, weights_only=True)["model"]
    assert torch.equal(saved["norm.weight"], method.encoder.norm.weight * 0.5)
    assert {"mask_token", "decoder_pred.weight"} <= set(saved)


def test_what_a_published_file_does_not_say_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, _ = small_run(tmp_path / "run", "data.size=[8, 32]", "method.norm_pix=false")
    (note,) = mimkit.convert(run, tmp_path / "mae.pth", to="published").notes
    for said in (
        "encoder.name=vit:32x2x4 (taken as vit:32x2x1)",
        "method.decoder.heads=2 (taken as 16)",
        "method.norm_pix=False (taken as True)",
        "data.size=[8, 32] (taken as [16, 16])",
        "data.mean=[0.4, 0.5, 0.6] (taken as [0.485, 0.456, 0.406])",
    ):
        assert said in note
    assert not caplog.text
    mimkit.convert(tmp_path / "mae.pth", tmp_path / "back")
    assert "how many attention heads it has: taken as 1, 64 wide" in caplog.text
    assert "how many heads its decoder has: taken as 16" in caplog.text
    usual, _ = small_run(
        tmp_path / "usual", "encoder.name=vit_tiny", "method.decoder.heads=16", "data.mean=null", "data.std=null",
        "data.mean=[0.485, 0.456, 0.406]", "data.std=[0.229, 0.224, 0.225]",
    )  # fmt: skip
    assert not mimkit.convert(usual, tmp_path / "usual.pth", to="published").notes


def test_a_folder_of_transformers_becomes_a_published_file(tmp_path: Path) -> None:
    run, method = small_run(tmp_path / "run")
    folder = mimkit.export(run, "hf", tmp_path / "hf").path
    path = mimkit.convert(folder, tmp_path / "mae.pth", to="published").path
    saved = torch.load(path, weights_only=True)["model"]
    assert torch.equal(saved["blocks.1.attn.qkv.weight"], method.encoder.blocks[1].attn.qkv.weight)
    model = mimkit.load(mimkit.convert(folder, tmp_path / "ours").path)
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(tokens(model.encoder, images), tokens(method.encoder, images))


def test_a_file_that_lacks_a_tensor_is_not_converted(tmp_path: Path) -> None:
    _, method = small_run(tmp_path / "run", "encoder.name=vit:64x2x1", "method.decoder.heads=16")
    published = write(PUBLISHED, method.state_dict())
    del published["blocks.1.norm2.bias"]
    torch.save({"model": published}, tmp_path / "mae.pth")
    for out, to in (("ours", "mimkit"), ("back.pth", "published")):
        with pytest.raises(DataError, match=r"1 of the model are not in it \(encoder.blocks.1.norm2.bias\)"):
            mimkit.convert(tmp_path / "mae.pth", tmp_path / out, to)
        assert not (tmp_path / out).exists()


def test_nothing_is_written_over_and_forms_are_named(tmp_path: Path) -> None:
    run, _ = small_run(tmp_path / "run")
    (tmp_path / "there.pth").write_text("mine")
    for out, to, said in (
        ("there.pth", "published", "is there already"),
        ("folder", "published", r"ends in \.pth"),
        ("there.pth", "mimkit", "named like a file"),
        ("out", "publishd", "Did you mean 'published'"),
    ):
        with pytest.raises(UserError, match=said):
            mimkit.convert(run, tmp_path / out, to)
    assert (tmp_path / "there.pth").read_text() == "mine"
