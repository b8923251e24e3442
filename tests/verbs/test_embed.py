"""Features in files: the same to the bit however they were made, whole or after a stop, in every format."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

import mimkit
from mimkit.errors import DataError, UserError
from mimkit.verbs import embed as embedding
from mimkit.verbs.models import open_model
from mimkit.verbs.running import Runner


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 images in four blocks."""
    monkeypatch.setattr(embedding, "BLOCK", 64)


def names(path: Path) -> list[str]:
    return path.with_name(f"{path.name}.files.txt").read_text().splitlines()


def test_rows_are_what_the_head_reads_in_the_order_of_the_files(
    tuned: Path, faces: Path, tmp_path: Path
) -> None:
    found = mimkit.embed(tuned, faces, tmp_path / "f.npy")
    features = np.load(tmp_path / "f.npy")
    assert features.shape == (200, 48) and features.dtype == np.float32 and found.shape == (48,)
    assert names(tmp_path / "f.npy") == [f"{'face' if i < 100 else 'other'}/{i:03}.png" for i in range(200)]
    task = open_model(tuned).task
    assert task is not None
    logits = task.head(torch.from_numpy(features))
    mimkit.predict(tuned, faces, out=tmp_path / "answers", sheet=tmp_path / "s.png")
    answers = [json.loads(line)["class"] for line in (tmp_path / "answers").read_text().splitlines()]
    assert answers == [task.classes[i] for i in logits.argmax(1).tolist()]


def test_all_formats_hold_the_same(tuned: Path, faces: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for ending in (".npy", ".safetensors", ".parquet"):
        mimkit.embed(tuned, faces, tmp_path / f"f{ending}", pooling="cls")
    wanted, tensors = np.load(tmp_path / "f.npy"), load_file(tmp_path / "f.safetensors")
    assert np.array_equal(tensors["features"].numpy(), wanted)
    assert tensors["ids"].tolist() == list(range(200))
    table = parquet.read_table(tmp_path / "f.parquet")
    assert np.array_equal(np.stack(table["features"].to_numpy()), wanted)
    assert table["file"].to_pylist() == names(tmp_path / "f.npy") == names(tmp_path / "f.safetensors")


def test_dense_features_are_the_map_whose_mean_is_the_pooled_one(
    tuned: Path, faces: Path, tmp_path: Path
) -> None:
    mimkit.embed(tuned, faces, tmp_path / "map.npy", dense=True)
    mimkit.embed(tuned, faces, tmp_path / "mean.npy", pooling="mean")
    dense = np.load(tmp_path / "map.npy")
    assert dense.shape == (200, 4, 4, 48)
    assert np.allclose(dense.mean((1, 2)), np.load(tmp_path / "mean.npy"), atol=1e-5)


def test_an_inner_layer_can_be_had(tuned: Path, faces: Path, tmp_path: Path) -> None:
    for layer in (1, 3):
        mimkit.embed(tuned, faces, tmp_path / f"{layer}.npy", layer=layer)
    mimkit.embed(tuned, faces, tmp_path / "mean.npy", pooling="mean")
    assert np.array_equal(np.load(tmp_path / "3.npy"), np.load(tmp_path / "mean.npy"))
    assert not np.allclose(np.load(tmp_path / "1.npy"), np.load(tmp_path / "3.npy"))


def test_layers_of_networks_of_stages_are_blocks_in_embed_and_probe(faces: Path, tmp_path: Path) -> None:
    words = ["data.size=32", "data.workers=0"]
    found = mimkit.embed("random:timm:convnext_atto", faces / "face", tmp_path / "f.npy", words, layer=7)
    assert (
        found.shape == (160,) and "layer 7" in found.lines()[0]
    )  # the third of six blocks of the third stage
    with pytest.raises(UserError, match="1 to 12"):
        mimkit.embed("random:timm:convnext_atto", faces, tmp_path / "g.npy", words, layer=13)
    rows = mimkit.probe("random:timm:convnext_atto", [*words, f"data.path={faces}"]).rows
    assert {row.layer for row in rows} == {3, 6, 9, 12}


def test_what_was_stopped_goes_on_and_comes_to_the_same_bits(
    tuned: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mimkit.embed(tuned, faces, tmp_path / "whole.npy")
    read, whole = [0], Runner.batches

    def stopping(self: Runner, *args: Any) -> Iterator[Any]:
        for batch in whole(self, *args):
            read[0] += 1
            if read[0] == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(Runner, "batches", stopping)
    with pytest.raises(KeyboardInterrupt):
        mimkit.embed(tuned, faces, tmp_path / "f.npy")
    assert not (tmp_path / "f.npy").exists()
    assert len(list((tmp_path / "f.npy.parts").glob("block-*"))) == 2
    mimkit.embed(tuned, faces, tmp_path / "f.npy")
    assert read[0] == 3 + 2  # two blocks were left
    assert (tmp_path / "f.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not (tmp_path / "f.npy.parts").exists()


def test_blocks_of_another_embedding_are_not_taken(
    tuned: Path, faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = tmp_path / "f.npy.parts"
    parts.mkdir()
    settings = {"weights": 0, "images": "others"}
    (parts / embedding.SETTINGS).write_text(json.dumps(settings))
    (parts / "block-0000000000.safetensors").write_bytes(b"of something else")
    mimkit.embed(tuned, faces, tmp_path / "f.npy")
    assert np.load(tmp_path / "f.npy").shape == (200, 48)
    assert "another embedding" in caplog.text


def test_unreadable_images_have_no_row(tuned: Path, faces: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for i in range(70):
        (tmp_path / "set" / f"{i:02}.png").write_bytes((faces / "face" / "000.png").read_bytes())
    for i in (3, *range(64, 70)):
        (tmp_path / "set" / f"{i:02}.png").write_bytes(b"no picture")
    found = mimkit.embed(tuned, tmp_path / "set", tmp_path / "f.safetensors")
    assert (found.images, len(found.skipped)) == (63, 7) and "7 could not be read" in found.lines()[1]
    assert load_file(tmp_path / "f.safetensors")["ids"].tolist() == [0, 1, 2, *range(4, 64)]
    assert names(tmp_path / "f.safetensors")[3] == "04.png"


def test_random_weights_are_the_same_each_time(faces: Path, tmp_path: Path) -> None:
    for name in ("a.npy", "b.npy"):
        settings = ["data.size=32", "encoder.patch=16", "train.precision=fp32"]
        mimkit.embed("random:vit_tiny", faces / "face", tmp_path / name, settings)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"out": "f.csv"}, ".npy, .parquet, .safetensors"),
        ({"out": "f.npy", "dense": True, "pooling": "cls"}, "not pooled"),
        ({"out": "f.npy", "pooling": "max"}, "mean and cls"),
        ({"out": "f.npy", "layer": 4}, "1 to 3"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_read(
    options: dict[str, Any], says: str, tuned: Path, faces: Path, tmp_path: Path
) -> None:
    out = tmp_path / options.pop("out")
    with pytest.raises(UserError, match=says):
        mimkit.embed(tuned, faces, out, **options)
    assert not list(tmp_path.iterdir())


def test_a_file_of_one_of_timms_networks_is_embedded_as_its_refusal_says(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resnet"
    folder.mkdir()
    file = folder / "pytorch_model.bin"
    torch.manual_seed(0)
    network = timm.create_model(
        "resnet10t", num_classes=0
    ).eval()  # its batch norms count in tensors without an axis
    torch.save(network.state_dict(), file)
    with pytest.raises(
        DataError, match=r"a ResNet; .* as pytorch_model.bin .* config.json .*or timm:resnet50 for"
    ):
        mimkit.embed(file, faces, tmp_path / "f.npy")
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet10t"}))
    found = mimkit.embed(folder, faces, tmp_path / "f.npy")
    assert found.shape == (network.num_features,) and len(np.load(tmp_path / "f.npy")) == 200
    mimkit.embed(file, faces, tmp_path / "g.npy")  # the file itself, which the configuration speaks of too
    assert np.array_equal(np.load(tmp_path / "f.npy"), np.load(tmp_path / "g.npy"))


@pytest.mark.parametrize(
    "name", ["random:vit:48x3x3", "random:mcmae:16-24-48x1-1-2x3", "random:timm:resnet10t"]
)
def test_random_weights_take_images_of_any_channels_with_a_word(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(
        tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (4, 32, 32, 5), dtype=np.uint8)
    )
    caplog.set_level("INFO", logger="mimkit")
    words = ["data.channels=5", "data.size=32"]
    mimkit.embed(name, tmp_path / "images.npy", tmp_path / "f.npy", words)
    assert np.isfinite(np.load(tmp_path / "f.npy")).all()
    assert "does not say how its 5 channels were normalised: taken as ImageNet's average" in caplog.text
    caplog.clear()
    own = ["data.mean=[0.5,0.5,0.5,0.5,0.5]", "data.std=[1,1,1,1,1]"]
    assert open_model(name, [*words, *own]).recipe.data.std == (1.0,) * 5 and not caplog.text


def test_images_of_other_channels_than_the_models_are_refused_with_the_reason(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((4, 32, 32, 5), dtype=np.uint8))
    for _ in range(2):  # and again, not only where the images were looked at
        with pytest.raises(
            DataError, match=r"None of the 4 images .* can be read, the first one: .*channels"
        ):
            mimkit.embed("random:vit:48x3x3", tmp_path / "images.npy", tmp_path / "f.npy", ["data.size=32"])
