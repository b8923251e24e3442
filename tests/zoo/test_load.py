"""Starting a model from weights: what is loaded answers as before, what is fitted and left out is reported, the rest
is refused and changes nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from mimkit.encoders.vit import ViT
from mimkit.errors import DataError, UserError
from mimkit.masks import RandomMasker
from mimkit.methods.mae import MAE
from mimkit.zoo import network
from mimkit.zoo.adapt import adapt_channels, resize_kernel
from mimkit.zoo.load import initialise, load
from mimkit.zoo.mae import HUB, PUBLISHED
from mimkit.zoo.rules import write
from mimkit.zoo.source import Weights


def encoder_of(
    size: tuple[int, int] = (16, 16), patch: int = 4, depth: int = 2, width: int = 16, **options: Any
) -> ViT:
    return ViT(width, depth, 2, (patch, patch), size=size, **options)


def mae_of(size: tuple[int, int] = (16, 16), decoder_width: int = 8, **options: Any) -> MAE:
    encoder = encoder_of(size, **options)
    model = MAE(encoder, RandomMasker(0.5, encoder.unit), size, decoder_width, 2, 2)
    for parameter in model.parameters():  # tables too, so that nothing matches by chance
        parameter.data.normal_(std=0.2)
    return model


def published(model: MAE) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in write(PUBLISHED, model.state_dict()).items()}


def only_encoder(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in tensors.items() if "decoder" not in name and name != "mask_token"}


def same(a: MAE, b: MAE, size: tuple[int, int] = (16, 16)) -> None:
    images = torch.randn(2, 3, *size)
    mask = a.draw_mask(images, 0)
    assert torch.equal(a.predict_all(images, mask), b.predict_all(images, mask))


def test_a_training_checkpoint_of_the_published_code_is_read_whole(tmp_path: Path) -> None:
    first, second = mae_of(), mae_of()
    file = tmp_path / "checkpoint-799.pth"
    torch.save({"model": published(first), "epoch": 799, "args": argparse.Namespace(mask_ratio=0.75)}, file)
    report = initialise(second, str(file))
    same(first, second)
    assert report.decoder and not (report.fresh or report.aside or report.resized)
    assert (
        str(report) == f"checkpoint-799.pth, read as MAE and timm names: {len(report.loaded)} tensors loaded"
    )


@pytest.mark.parametrize("family", HUB[::2], ids=lambda family: family.name)
def test_every_form_of_transformers_is_read(family: Any) -> None:
    first, second = mae_of(), mae_of()
    load(second, Weights(write(family, first.state_dict()), "file"))
    same(first, second)


@pytest.mark.parametrize("family", HUB[1::2], ids=lambda family: family.name)
def test_every_form_of_transformers_without_a_decoder_is_read(family: Any) -> None:
    first, second = mae_of(), encoder_of()
    encoder = {name: x for name, x in first.state_dict().items() if name.startswith("encoder.")}
    report = load(second, Weights(write(family, encoder), "file"))
    assert len(report.loaded) == len(encoder) and torch.equal(second.norm.weight, first.encoder.norm.weight)


def test_a_file_without_decoder_says_so_and_leaves_the_random_one(tmp_path: Path) -> None:
    first, second = mae_of(), mae_of()
    untouched = second.decoder.pred.weight.clone()
    torch.save({"model": only_encoder(published(first))}, tmp_path / "mae_pretrain_vit_base.pth")
    report = initialise(second, str(tmp_path / "mae_pretrain_vit_base.pth"))
    assert not report.decoder and report.norm_pix is None
    assert list(report.fresh) == ["the file holds no decoder"]
    assert "newly initialised: 32 tensors (decoder.*): the file holds no decoder" in str(report)
    assert torch.equal(second.decoder.pred.weight, untouched)
    assert torch.equal(second.encoder.norm.weight, first.encoder.norm.weight)


@pytest.mark.parametrize(
    ("name", "norm_pix"),
    [("mae_visualize_vit_base.pth", False), ("mae_pretrain_vit_base_full.pth", True), ("my.pth", None)],
)
def test_what_a_known_file_predicts_is_reported(tmp_path: Path, name: str, norm_pix: bool | None) -> None:
    torch.save({"model": published(mae_of())}, tmp_path / name)
    assert initialise(mae_of(), str(tmp_path / name)).norm_pix is norm_pix


def test_an_encoder_sets_the_decoder_aside() -> None:
    first = mae_of()
    report = load(encoder_of(), Weights(published(first), "file"))
    assert list(report.aside) == ["a decoder, which an encoder alone does not have"] and not report.fresh


def test_a_decoder_of_another_size_is_set_aside_whole() -> None:
    first, second = mae_of(), mae_of(decoder_width=12)
    report = load(second, Weights(published(first), "file"))
    assert not report.decoder and set(report.fresh) == set(report.aside) == {
        "the file's decoder is of another size or predicts other patches"
    }


def test_a_fine_tuned_classifier_gives_its_encoder() -> None:
    tensors = only_encoder(published(mae_of()))
    tensors["fc_norm.weight"], tensors["fc_norm.bias"] = tensors.pop("norm.weight"), tensors.pop("norm.bias")
    tensors |= {"head.weight": torch.zeros(5, 16), "head.bias": torch.zeros(5)}
    report = load(encoder_of(), Weights(tensors, "file"))
    assert report.aside == {
        "the classification head": ("head.weight", "head.bias"),
        "the norm behind a mean pooling": ("fc_norm.weight", "fc_norm.bias"),
    }
    assert sum(report.fresh.values(), ()) == ("encoder.norm.weight", "encoder.norm.bias")


def test_another_resolution_resizes_both_tables_and_says_so() -> None:
    first, second = mae_of((16, 16)), mae_of((24, 32))
    report = load(second, Weights(published(first), "file"))
    assert [str(change) for change in report.resized] == [
        "encoder.pos_embed 4 x 4 -> 6 x 8 (bicubic)",
        "decoder.pos_embed 4 x 4 -> 6 x 8 (bicubic)",
    ]
    small = encoder_of((16, 16))
    load(small, Weights(published(first), "file"))
    assert torch.allclose(second.encoder.positions((6, 8)), small.positions((6, 8)))


def test_a_table_of_as_many_cells_in_another_grid_is_resized() -> None:
    first, second = mae_of((16, 16)), mae_of((8, 32))
    assert len(load(second, Weights(published(first), "file")).resized) == 2
    assert not load(mae_of((8, 32)), Weights(published(second), "file", grid=(2, 8))).resized


def test_a_table_without_a_class_row_gets_zeros_for_it() -> None:
    tensors = only_encoder(published(mae_of()))
    tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    encoder = encoder_of()
    load(encoder, Weights(tensors, "file"))
    assert torch.equal(encoder.pos_embed[:, 1:], tensors["pos_embed"]) and not encoder.pos_embed[:, 0].any()


def test_an_encoder_without_class_token_sets_it_aside_with_its_row() -> None:
    first = mae_of()
    encoder = encoder_of(class_token=False)
    report = load(encoder, Weights(only_encoder(published(first)), "file"))
    assert report.aside == {"a class token, which this encoder does not have": ("encoder.cls_token",)}
    assert torch.equal(encoder.pos_embed, first.encoder.pos_embed[:, 1:])


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_another_number_of_channels_answers_a_grey_image_as_before(channels: int) -> None:
    first = mae_of()
    encoder = encoder_of(channels=channels)
    report = load(encoder, Weights(only_encoder(published(first)), "file"))
    rule = "summed" if channels == 1 else "repeated in turn and scaled"
    assert [str(x) for x in report.resized] == [
        f"encoder.patch_embed.proj.weight 3 channels -> {channels} ({rule})"
    ]
    if channels % 3 == 0 or channels == 1:
        grey = torch.randn(1, 1, 16, 16)
        wanted = first.encoder.patch_embed(grey.expand(-1, 3, -1, -1))
        assert torch.allclose(encoder.patch_embed(grey.expand(-1, channels, -1, -1)), wanted, atol=1e-5)


def test_another_patch_resizes_the_kernel_and_the_table() -> None:
    first = mae_of()  # 16 x 16 pixels in patches of 4
    encoder = encoder_of(patch=2)
    report = load(encoder, Weights(only_encoder(published(first)), "file"))
    assert {change.after for change in report.resized} == {"8 x 8", "2 x 2"}


def test_a_larger_patch_answers_a_resized_patch_as_the_old_one_answered_the_patch() -> None:
    kernel, patch = torch.randn(5, 2, 4, 6).double(), torch.randn(1, 2, 4, 6).double()
    new = resize_kernel(kernel, (7, 9))
    resized = torch.nn.functional.interpolate(patch, size=(7, 9), mode="bicubic", antialias=True)
    wanted = (kernel * patch).sum((1, 2, 3))
    assert torch.allclose((new * resized).sum((1, 2, 3)), wanted)


def test_kernels_for_one_channel_are_the_sum() -> None:
    kernel = torch.randn(5, 3, 2, 2)
    assert torch.equal(adapt_channels(kernel, 1)[:, 0], kernel.sum(1))


# ---- what is refused


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["layers.0.blocks.0.attn.relative_position_bias_table", "layers.0.downsample.norm.weight"], "Swin"),
        (["patch_embed1.proj.weight", "blocks1.0.conv1.weight"], "ConvMAE"),
        (
            ["encoder.cls_token", "encoder.blocks.0.attn.relative_position_bias_table"],
            "SimMIM kind",
        ),
        (["encoder.layers.0.blocks.0.norm1.weight", "decoder.0.weight"], "Swin transformer and does not fit"),
        (["backbone.fpn_lateral2.weight", "backbone.net.blocks.0.attn.rel_pos_h"], "detector"),
        (["conv1.weight", "layer1.0.conv1.weight"], "ResNet"),
        (["visual.conv1.weight", "logit_scale"], "CLIP"),
        (["anything.at.all"], "no architecture known here"),
    ],
)
def test_a_file_of_another_architecture_is_named(names: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load(encoder_of(), Weights({name: torch.zeros(1) for name in names}, "file.pth"))
    assert "\n" not in str(caught.value)


def test_an_encoder_of_another_size_is_named_with_the_model_that_fits() -> None:
    file = {"patch_embed.proj.weight": torch.empty(1024, 3, 16, 16, device="meta")}
    file |= {f"blocks.{i}.norm1.weight": torch.empty(1024, device="meta") for i in range(24)}
    with pytest.raises(
        DataError, match=r"1024 wide and 24 deep, as vit_large; this one is 16 wide and 2 deep"
    ):
        load(encoder_of(), Weights(file, "file.pth"))


def test_layer_scales_that_only_one_side_has_are_refused_with_the_option_to_set() -> None:
    first = mae_of(layer_scale=0.1)
    with pytest.raises(DataError, match=r"encoder\.layer_scale"):
        load(encoder_of(), Weights(only_encoder(published(first)), "file"))
    with pytest.raises(DataError, match=r"encoder\.layer_scale"):
        load(encoder_of(layer_scale=0.1), Weights(only_encoder(published(mae_of())), "file"))


@pytest.mark.parametrize(
    "lost", ["blocks.0.norm1.weight", "decoder_blocks.1.mlp.fc2.bias", "patch_embed.proj.bias"]
)
def test_a_file_that_lacks_a_tensor_is_refused_and_changes_nothing(lost: str) -> None:
    tensors, model = published(mae_of()), mae_of()
    del tensors[lost]
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(DataError, match="1 of the model are not in it"):
        load(model, Weights(tensors, "file"))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_a_tensor_of_another_shape_is_refused() -> None:
    tensors = published(mae_of())
    tensors["blocks.0.mlp.fc1.weight"] = torch.zeros(7, 16)
    with pytest.raises(DataError, match=r"encoder\.blocks\.0\.mlp\.fc1\.weight has the shape \(7, 16\)"):
        load(mae_of(), Weights(tensors, "file"))


def test_a_query_without_its_key_is_refused() -> None:
    tensors = write(HUB[0], mae_of().state_dict())
    tensors.pop("vit.encoder.layer.0.attention.attention.key.weight")
    with pytest.raises(DataError, match="have no place"):
        load(mae_of(), Weights(tensors, "file"))


# ---- where weights come from


def run_folder(folder: Path, model: MAE, size: list[int], steps: tuple[int, ...] = (9, 100)) -> Path:
    for step in steps:
        checkpoint = folder / "checkpoints" / f"step-{step}"
        checkpoint.mkdir(parents=True)
        state = {name: x * (step == max(steps)) for name, x in model.state_dict().items()}
        save_file(state, checkpoint / "model.safetensors")
    recipe = {"data": {"size": size}, "encoder": {"patch": [4, 4]}, "method": {"norm_pix": True}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_a_run_folder_gives_its_newest_checkpoint(tmp_path: Path) -> None:
    first, second = mae_of((8, 32)), mae_of((8, 32))
    report = initialise(second, str(run_folder(tmp_path / "run", first, [8, 32])))
    same(first, second, (8, 32))
    assert report.norm_pix is True and report.format == "mimkit" and not report.resized
    assert report.source == "run/checkpoints/step-100"


def test_a_run_that_keeps_a_moving_average_gives_that_one(tmp_path: Path) -> None:
    run, averaged = run_folder(tmp_path / "run", mae_of(), [16, 16]), mae_of()
    trained = {name for name, parameter in averaged.named_parameters() if not name.endswith("pos_embed")}
    kept = {name: x for name, x in averaged.state_dict().items() if name in trained}
    newest = run / "checkpoints/step-100"
    save_file(kept, newest / "ema.safetensors")
    for source in (run, newest):
        started = mae_of()
        report = initialise(started, str(source))
        assert report.source.endswith("(moving average)") and report.decoder
        assert all(torch.equal(x, kept[name]) for name, x in started.state_dict().items() if name in trained)
    raw = mae_of()
    initialise(raw, str(newest / "model.safetensors"))
    assert not torch.equal(raw.encoder.norm.weight, averaged.encoder.norm.weight)


def test_a_run_without_a_step_warns_that_its_weights_are_random(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    initialise(mae_of(), str(run_folder(tmp_path / "run", mae_of(), [16, 16], (0,))))
    assert "step-0 was saved before the first step: its weights are random" in caplog.text


def test_the_recipe_beside_a_checkpoint_says_which_grid_its_table_has(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", mae_of((8, 32)), [8, 32])
    for source in (run, run / "checkpoints/step-100", run / "checkpoints/step-100/model.safetensors"):
        report = initialise(encoder_of((16, 16)), str(source))
        assert [str(x) for x in report.resized] == ["encoder.pos_embed 2 x 8 -> 4 x 4 (bicubic)"]


def test_a_config_beside_a_file_that_is_not_the_folders_weights_says_nothing_of_it(tmp_path: Path) -> None:
    encoder = encoder_of()
    torch.save(encoder.state_dict(), tmp_path / "mine.pth")
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    other = encoder_of()
    initialise(other, str(tmp_path / "mine.pth"))
    assert torch.equal(other.norm.weight, encoder.norm.weight)


def test_sources_that_are_none_are_mistakes_of_the_user(tmp_path: Path) -> None:
    for source, said in (
        (tmp_path / "nothing", "There is nothing at"),
        (tmp_path, "no run folder with a checkpoint"),
        (f"hf:{tmp_path}", "holds neither model.safetensors nor pytorch_model.bin"),
        ("timm:vit_bse_patch16_224", "Did you mean 'vit_base_patch16_224'"),
    ):
        with pytest.raises(UserError, match=said):
            initialise(encoder_of(), str(source))


def test_timm_weights_that_cannot_be_fetched_end_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("cannot reach the hub\nsecond line")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # whatever the environment says
    monkeypatch.setattr(network, "_answers", lambda: True)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match="could not be fetched \\(cannot reach the hub\\)") as caught:
        initialise(encoder_of(), "timm:vit_tiny_patch16_224")
    assert "second line" not in str(caught.value)


def test_timm_weights_answer_as_timm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=(32, 48), depth=2).eval()
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: theirs)
    ours = ViT(192, 2, 3, (16, 16), size=(32, 48), positions="learned").eval()
    report = initialise(ours, "timm:vit_tiny_patch16_224")
    images = torch.randn(2, 3, 32, 48)
    features = ours(images)
    tokens = torch.cat([features.prefix, features.levels[0].flatten(1, 2)], dim=1)
    assert torch.allclose(tokens, theirs.forward_features(images), atol=1e-5) and not report.fresh


def test_a_timm_encoder_starts_from_timm_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    from mimkit import encoders

    ours = encoders.build("timm:resnet18")
    theirs = timm.create_model("resnet18", num_classes=0)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: theirs)
    report = initialise(ours, "timm:resnet18")
    assert torch.equal(ours.model.conv1.weight, theirs.conv1.weight)
    assert len(report.loaded) == len(ours.state_dict())


def test_a_folder_saved_by_transformers_predicts_as_transformers_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4,
        decoder_num_attention_heads=2, decoder_hidden_size=8, decoder_num_hidden_layers=2, decoder_intermediate_size=32,
        layer_norm_eps=1e-6, norm_pix_loss=True,
    )  # fmt: skip
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    for parameter in theirs.parameters():
        parameter.data.normal_(std=0.2)
    theirs.save_pretrained(tmp_path / "saved")
    ours = mae_of()
    report = initialise(ours, f"hf:{tmp_path / 'saved'}")
    assert report.norm_pix is True and not report.notes and not report.fresh
    in_memory = mae_of()
    load(in_memory, Weights(theirs.state_dict(), "modules"))
    same(ours, in_memory)

    images, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    out = theirs(images, noise=noise)
    from mimkit.masks import from_hidden

    mask = from_hidden(out.mask.bool().view(2, 4, 4), (4, 4))
    assert torch.allclose(ours.predict_all(images, mask), out.logits, atol=1e-5)


def test_hub_shards_are_joined_and_another_epsilon_is_noted(tmp_path: Path) -> None:
    first, second = mae_of(), mae_of()
    tensors = {name: x.contiguous() for name, x in write(HUB[0], first.state_dict()).items()}
    names = list(tensors)
    shards = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(
        json.dumps({"layer_norm_eps": 1e-12, "image_size": 16, "patch_size": 4})
    )
    report = initialise(second, f"hf:{tmp_path}")
    same(first, second)
    assert report.notes == ("note: its layer norms add 1e-12 to the variance, this model's 1e-06",)
