"""Every published MCMAE file, by its names and shapes: read with nothing left over or missing, described, written back;
and what starts from what.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mimkit import encoders
from mimkit.encoders.mcmae import MCMAEEncoder
from mimkit.errors import DataError
from mimkit.masks import RandomMasker
from mimkit.methods.mcmae import MCMAE
from mimkit.ops.relative import offset_index
from mimkit.tasks.necks import Coarser, SimplePyramid
from mimkit.zoo import publisher, recognise
from mimkit.zoo.load import load, read_strictly
from mimkit.zoo.mcmae_shapes import describe
from mimkit.zoo.rules import read, write
from mimkit.zoo.weights import Weights

from .compact import expand

PUBLISHED = {
    name: expand(rows)
    for name, rows in json.loads(Path(__file__).with_name("published_mcmae.json").read_text()).items()
}
FORMS = {
    "pretrain_base_encoder": "classifier",
    "pretrain_base_training": "classifier",
    "finetuned_base": "classifier",
    "linear_probe_base": "classifier",
    "mask_rcnn_fpn_base": "detection",
    "mask_rcnn_vitdet_base": "vitdet",
    "upernet_base": "segmentation",
}
every = pytest.mark.parametrize("entry", PUBLISHED)


def file_of(entry: str) -> dict[str, Tensor]:
    """The file on the meta device: names and shapes alone."""
    return {name: torch.empty(shape, device="meta") for name, shape in PUBLISHED[entry].items()}


def encoder_of(tensors: dict[str, Tensor]) -> MCMAEEncoder:
    found = describe(tensors)
    with torch.device("meta"):
        return encoders.build(size=found.size, **found.encoder)


@every
def test_every_published_file_converts_in_and_out_with_nothing_missing_or_left_over(entry: str) -> None:
    file = file_of(entry)
    family, share = recognise(file)
    reading = read(family, file)
    assert share == 1 and not reading.unexplained
    assert set(reading.aside) <= {"indices of relative positions, which are computed"}

    own = {f"encoder.{name}": tuple(x.shape) for name, x in encoder_of(reading.tensors).state_dict().items()}
    theirs = {name: tuple(x.shape) for name, x in reading.tensors.items()}
    assert {name: shape for name, shape in theirs.items() if name.startswith("encoder.")} == own

    assert publisher(reading.tensors) == family
    back = write(family, reading.tensors)
    assert {name: tuple(x.shape) for name, x in back.items()} == PUBLISHED[entry]


@every
def test_shapes_tell_size_kernel_form_windows_and_grids(entry: str) -> None:
    found = describe(read(recognise(PUBLISHED[entry])[0], file_of(entry)).tensors)
    said = found.encoder
    assert (said["name"], said["kernel"], said["form"]) == ("mcmae_base", 5, FORMS[entry])
    assert found.size == {"detection": (1024, 1024), "vitdet": (1024, 1024), "segmentation": (512, 512)}.get(
        said["form"], (224, 224)
    )
    if said["form"] == "detection":
        assert (said["window"], said["global_blocks"]) == ((16, 16), (0, 3, 6, 10))
    if said["form"] == "vitdet":
        assert (said["window"], said["global_blocks"], said["table"]) == ((14, 14), (1, 4, 7, 10), (14, 14))


@every
def test_the_report_of_every_published_file_accounts_for_every_parameter(entry: str) -> None:
    file = file_of(entry)
    tensors = read(recognise(file)[0], file).tensors
    encoder = encoder_of(tensors)
    report = load(encoder, Weights(file, entry))
    assert {name.removeprefix("encoder.") for name in report.loaded} == set(encoder.state_dict())
    assert not report.fresh and not report.resized
    beside = {name for name in tensors if not name.startswith("encoder.")}
    assert sum(len(names) for why, names in report.aside.items() if "indices" not in why) == len(beside)


def test_a_file_of_a_whole_training_fills_the_method_and_one_of_the_encoder_leaves_its_decoder() -> None:
    with torch.device("meta"):
        encoder = encoders.build("mcmae_base")
        method = MCMAE(encoder, RandomMasker(0.75, encoder.unit))
    whole = load(method, Weights(file_of("pretrain_base_training"), "whole"))
    assert set(whole.loaded) == set(method.state_dict()) and whole.decoder and not whole.aside
    alone = load(method, Weights(file_of("pretrain_base_encoder"), "alone"))
    assert not alone.decoder and "fusion.norm.weight" in alone.loaded
    assert set(alone.fresh) == {
        "the file holds no decoder",
        "the file holds no fusion of the levels, so it starts anew",
    }


@pytest.mark.parametrize("form", ["detection", "vitdet", "segmentation"])
@pytest.mark.parametrize("entry", ["pretrain_base_encoder", "pretrain_base_training"])
def test_pre_training_starts_every_form(form: str, entry: str) -> None:
    with torch.device("meta"):
        encoder = encoders.build("mcmae_base", size=(512, 512), form=form)
    report = load(encoder, Weights(file_of(entry), entry))
    fresh = [name for names in report.fresh.values() for name in names]
    assert {f"encoder.{name}" for name in encoder.state_dict()} == {*report.loaded, *fresh}
    assert all(".relative." in name or ".ls" in name for name in fresh)
    resized = [(change.before, change.after) for change in report.resized]
    assert resized == ([] if form == "vitdet" else [("14 x 14", "32 x 32")])


@pytest.mark.parametrize("form", ["detection", "vitdet", "segmentation"])
def test_a_trained_classifier_starts_no_form_for_dense_features(form: str) -> None:
    with torch.device("meta"):
        encoder = encoders.build("mcmae_base", size=(512, 512), form=form)
    with pytest.raises(DataError, match=f"is a trained classifier, .* of the form '{form}'"):
        load(encoder, Weights(file_of("finetuned_base"), "finetuned_base"))


@pytest.mark.parametrize("entry", ["mask_rcnn_fpn_base", "mask_rcnn_vitdet_base", "upernet_base"])
def test_a_form_for_dense_features_starts_no_other(entry: str) -> None:
    for form in ("classifier", "detection", "vitdet", "segmentation"):
        with torch.device("meta"):
            encoder = encoders.build("mcmae_base", size=(64, 64), form=form)
        if form == FORMS[entry]:
            load(encoder, Weights(file_of(entry), entry))
            continue
        with pytest.raises(DataError, match=f"{entry} holds an encoder of the form .*set encoder.form="):
            load(encoder, Weights(file_of(entry), entry))


def test_tables_and_vectors_are_resampled_for_other_images() -> None:
    with torch.device("meta"):
        encoder = encoders.build("mcmae_base", size=(512, 768), form="detection")
    report = load(encoder, Weights(file_of("mask_rcnn_fpn_base"), "fpn"))
    assert ("encoder.relative.whole.table", "64 x 64", "32 x 48") in [
        c[:3] for c in map(_row, report.resized)
    ]
    with torch.device("meta"):
        encoder = encoders.build("mcmae_base", size=(512, 768), form="vitdet")
    report = load(encoder, Weights(file_of("mask_rcnn_vitdet_base"), "vitdet"))
    assert {c.after for c in report.resized} == {"32", "48"} and {c.rule for c in report.resized} == {
        "linear"
    }


def _row(change: object) -> tuple[str, str, str]:
    return change.name, change.before, change.after


def test_the_necks_of_published_files_fill_ours() -> None:
    for entry, neck in (
        ("mask_rcnn_vitdet_base", SimplePyramid(768)),
        ("upernet_base", Coarser(768, "conv")),
    ):
        file = file_of(entry)
        tensors = read(recognise(file)[0], file).tensors
        theirs = {
            n.removeprefix("neck."): tuple(x.shape) for n, x in tensors.items() if n.startswith("neck.")
        }
        assert theirs == {name: tuple(x.shape) for name, x in neck.state_dict().items()}


def test_indices_are_written_as_the_published_code_makes_them() -> None:
    table = torch.randn(7, 11, 2)  # of a 4 x 6 grid
    encoder = {"encoder.relative.whole.table": table}
    back = write(recognise(["global_rel_pos_bias.relative_position_bias_table"])[0], encoder)
    assert torch.equal(back["global_rel_pos_bias.relative_position_index"], offset_index((4, 6)))
    assert torch.equal(back["global_rel_pos_bias.relative_position_bias_table"], table.view(77, 2))


def test_a_second_version_of_the_model_is_refused_by_name() -> None:
    file = file_of("pretrain_base_encoder") | {"cls_token": torch.empty(1, 1, 768, device="meta")}
    with pytest.raises(DataError, match="ConvMAE-v2, another model than MCMAE"):
        read_strictly(Weights(file, "v2.pth"))


def test_an_encoder_of_another_size_is_named() -> None:
    with torch.device("meta"):
        encoder = encoders.build("mcmae_small")
    with pytest.raises(DataError, match=r"holds an encoder mcmae_base; this one is mcmae_small\. Set"):
        load(encoder, Weights(file_of("pretrain_base_encoder"), "base.pth"))


def test_other_sizes_have_a_name_that_builds_them() -> None:
    with torch.device("meta"):
        made = encoders.build("mcmae:8-12-16x2-1-3x2x2-3-4", kernel=7)
    found = describe({f"encoder.{name}": x for name, x in made.state_dict().items()}, heads=2)
    assert (found.encoder["name"], found.encoder["kernel"], found.told) == (
        "mcmae:8-12-16x2-1-3x2x2-3-4",
        7,
        True,
    )
