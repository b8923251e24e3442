"""`mimkit.load`: one call for whatever holds weights, told apart by names and by what stands beside them."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import mimkit
from mimkit.errors import DataError, UserError
from mimkit.zoo import folders, network
from mimkit.zoo.mae import HUB, PUBLISHED
from mimkit.zoo.rules import write

from .small_run import small_run, tokens

transformers = pytest.importorskip("transformers")
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
# Heads, MLP and patch that no published file has; eps as ours, so that outputs are equal
CONFIG = {
    "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 50, "image_size": 16,
    "patch_size": 4, "layer_norm_eps": 1e-6,
}  # fmt: skip


def saved(folder: Path, model: Any) -> Path:
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    model.eval().save_pretrained(folder)
    return folder


def encoder_file(path: Path, width: int = 32, grid: int = 4, channels: int = 3, **more: torch.Tensor) -> Path:
    """A published file of an encoder alone, 2 blocks deep."""
    from mimkit.encoders.vit import ViT

    encoder = ViT(width, 2, 1, (4, 4), channels=channels, size=(4 * grid, 4 * grid))
    ours = {f"encoder.{name}": x for name, x in encoder.state_dict().items()}
    torch.save({"model": write(PUBLISHED, ours) | more}, path)
    return path


# ---- runs and files


def test_a_run_gives_encoder_method_and_report(tmp_path: Path) -> None:
    run, method = small_run(tmp_path / "run")
    model = mimkit.load(run)
    assert torch.equal(tokens(model.encoder, IMAGES), tokens(method.encoder, IMAGES))
    assert model.step == 3 and model.decoder is None and not model.method.training
    assert set(model.report.loaded) == set(method.state_dict())


@pytest.mark.parametrize("inside", ["checkpoints/step-3", "checkpoints/step-3/model.safetensors"])
def test_a_checkpoint_of_a_run_is_described_by_its_recipe(tmp_path: Path, inside: str) -> None:
    run, method = small_run(
        tmp_path / "run", "method.norm_pix=false", "encoder.patch=[2, 4]", "data.size=[8, 16]"
    )
    model, whole = mimkit.load(run / inside), mimkit.load(run)
    assert model.recipe.method == whole.recipe.method and model.recipe.data.mean == (0.4, 0.5, 0.6)
    assert torch.equal(model.method.decoder.pred.weight, method.decoder.pred.weight)


def test_an_encoder_alone_has_no_method_and_says_why(tmp_path: Path) -> None:
    model = mimkit.load(encoder_file(tmp_path / "mae_pretrain_vit_own.pth"))
    assert model.method is None and model.decoder == "mae_pretrain_vit_own.pth holds an encoder alone"
    assert model.recipe.encoder.name == "vit:32x2x1" and model.recipe.data.size == (16, 16)
    assert model.recipe.encoder.positions == "sincos" and not model.encoder.pos_embed.requires_grad


def test_a_learned_table_stays_learned(tmp_path: Path) -> None:
    path = encoder_file(tmp_path / "vit.pth", pos_embed=torch.randn(1, 17, 32))
    model = mimkit.load(path)
    assert model.recipe.encoder.positions == "learned" and model.encoder.pos_embed.requires_grad


def test_channels_that_nothing_describes_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = encoder_file(tmp_path / "vit.pth", channels=2)
    model = mimkit.load(path)
    assert model.encoder.channels == 2 and len(model.recipe.data.mean) == 2
    assert "does not say how its 2 channels were normalised" in caplog.text
    assert mimkit.load(path, ["data.mean=[0.1, 0.2]", "data.std=[1, 1]"]).recipe.data.mean == (0.1, 0.2)


def test_an_override_resizes_and_is_reported(tmp_path: Path) -> None:
    model = mimkit.load(encoder_file(tmp_path / "vit.pth"), ["data.size=[16, 24]"])
    assert [str(x) for x in model.report.resized] == ["encoder.pos_embed 4 x 4 -> 4 x 6 (bicubic)"]


def test_random_weights_are_reported_as_such() -> None:
    model = mimkit.load("random:vit:32x2x1")
    assert list(model.report.fresh) == ["nothing was loaded"] and model.method is None


# ---- transformers


@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_a_folder_of_vit_mae_is_opened_with_its_decoder(tmp_path: Path, prefix: str) -> None:
    from mimkit.masks import from_hidden

    config = transformers.ViTMAEConfig(
        **CONFIG, decoder_num_attention_heads=3, decoder_hidden_size=12, decoder_num_hidden_layers=2,
        decoder_intermediate_size=48, norm_pix_loss=True,
    )  # fmt: skip
    theirs = transformers.ViTMAEForPreTraining(config)
    model = mimkit.load(f"{prefix}{saved(tmp_path / 'saved', theirs)}")
    out = theirs(IMAGES, noise=torch.rand(2, 16))
    mask = from_hidden(out.mask.bool().view(2, 4, 4), (4, 4))
    assert torch.allclose(model.method.predict_all(IMAGES, mask), out.logits, atol=1e-5)
    assert model.recipe.method.norm_pix and model.report.norm_pix


@pytest.mark.parametrize("kind", ["ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling"])
def test_a_folder_of_vit_is_opened_whatever_stands_on_it(tmp_path: Path, kind: str) -> None:
    theirs = getattr(transformers, kind)(transformers.ViTConfig(**CONFIG, encoder_stride=4))
    model = mimkit.load(saved(tmp_path / "saved", theirs))
    want = (theirs if kind == "ViTModel" else theirs.vit)(IMAGES).last_hidden_state
    assert torch.allclose(tokens(model.encoder, IMAGES), want, atol=1e-5)
    assert model.method is None and len(model.report.aside) == (kind != "ViTForImageClassification")
    assert model.recipe.encoder.positions == "learned"


def test_the_image_processor_says_how_images_are_normalised(tmp_path: Path) -> None:
    folder = saved(tmp_path / "saved", transformers.ViTModel(transformers.ViTConfig(**CONFIG)))
    assert mimkit.load(folder).recipe.data.mean == (0.485, 0.456, 0.406)
    transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[1, 1, 2]).save_pretrained(folder)
    data = mimkit.load(folder).recipe.data
    assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (1, 1, 2))


def test_the_classes_of_a_head_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = {i: f"class {i}" for i in range(12)}
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**CONFIG, id2label=names))
    folder = saved(tmp_path / "saved", theirs)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = dict(sorted(config["id2label"].items()))  # "10" before "2", as some files have it
    (folder / "config.json").write_text(json.dumps(config))
    model = mimkit.load(folder)
    assert model.task.classes == tuple(names.values())
    want = theirs(IMAGES).logits
    assert torch.allclose(model.task.head(tokens(model.encoder, IMAGES)[:, 0]), want, atol=1e-5)


def test_another_activation_is_refused(tmp_path: Path) -> None:
    theirs = transformers.ViTModel(transformers.ViTConfig(**CONFIG, hidden_act="relu"))
    with pytest.raises(DataError, match="computes 'relu' in its MLPs"):
        mimkit.load(saved(tmp_path / "saved", theirs))


def test_an_id_of_the_hub_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder = saved(tmp_path / "saved", transformers.ViTModel(transformers.ViTConfig(**CONFIG)))
    asked = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert mimkit.load("hf:somebody/vit@main").report.source == "hf:vit@main"
    assert asked == [("somebody/vit", "main")]
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="holds neither"):
        mimkit.load("hf:somebody/vit@main")
    assert len(asked) == 3  # safetensors first, then what is pickled


def test_an_id_that_cannot_be_fetched_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network\nsecond line")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # whatever the environment says
    monkeypatch.setattr(network, "_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"could not be fetched \(no network\)") as caught:
        mimkit.load("hf:somebody/vit")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="give a downloaded folder of the hub, or an id"):
        mimkit.load("hf:no/such/folder")


# ---- what is refused


class Evil:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.victim}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_in_a_folder_is_executed(tmp_path: Path) -> None:
    folder, victim = tmp_path / "hub", tmp_path / "victim"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(victim)))
    with pytest.raises(DataError):
        mimkit.load(folder)
    torch.save({"model": {"a": torch.ones(1), "evil": Evil(victim)}}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="no architecture known here"):
        mimkit.load(folder)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list, not an object"),
        (json.dumps({"format": "mimkit", "version": 9}), "version 9 of mimkit's format"),
    ],
)
def test_a_damaged_configuration_ends_in_one_sentence(tmp_path: Path, content: str, said: str) -> None:
    run, _ = small_run(tmp_path / "run")
    folder = mimkit.export(run, "safetensors", tmp_path / "out").path
    (folder / "config.json").write_text(content)
    with pytest.raises(DataError, match=said):
        mimkit.load(folder)


def test_a_truncated_export_is_refused(tmp_path: Path) -> None:
    run, _ = small_run(tmp_path / "run")
    file = mimkit.export(run, "safetensors", tmp_path / "out").path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged"):
        mimkit.load(file.parent)


def test_a_shard_outside_its_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (tmp_path / "hub/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="There is no file"):
        folders.open_folder(tmp_path / "hub", "hub")


def test_another_architecture_is_named(tmp_path: Path) -> None:
    torch.save({"layers.0.blocks.0.attn.qkv.weight": torch.ones(1)}, tmp_path / "swin.pth")
    with pytest.raises(DataError, match="Swin"):
        mimkit.load(tmp_path / "swin.pth")


def test_a_folder_without_weights_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds neither model\.safetensors nor"):
        mimkit.load(tmp_path)


def test_the_hubs_old_names_without_a_configuration_are_read(tmp_path: Path) -> None:
    _, method = small_run(tmp_path / "run", "encoder.name=vit:64x2x1")
    tensors = {name: x for name, x in method.state_dict().items() if name.startswith("encoder.")}
    (tmp_path / "hub").mkdir()
    save_file(
        {n: x.contiguous() for n, x in write(HUB[1], tensors).items()}, tmp_path / "hub/model.safetensors"
    )
    model = mimkit.load(f"hf:{tmp_path / 'hub'}")
    assert torch.equal(tokens(model.encoder, IMAGES), tokens(method.encoder, IMAGES))
