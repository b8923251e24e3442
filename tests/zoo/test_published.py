"""Every published MAE file, by its names and shapes: read with nothing left over or missing, and written back."""

import json
from pathlib import Path

import pytest
import torch

from mimkit import encoders
from mimkit.masks import RandomMasker
from mimkit.methods.mae import MAE
from mimkit.zoo import recognise
from mimkit.zoo.load import load
from mimkit.zoo.rules import read, write
from mimkit.zoo.source import Weights

from .compact import expand

PUBLISHED = {
    name: expand(rows)
    for name, rows in json.loads(Path(__file__).with_name("published.json").read_text()).items()
}
NORMS = {"encoder.norm.weight", "encoder.norm.bias"}


def model_of(entry: str) -> MAE:
    size = next(name for name in ("base", "large", "huge") if name in entry)
    with torch.device("meta"):
        encoder = encoders.build(f"vit_{size}")
        return MAE(encoder, RandomMasker(0.75, encoder.unit))


@pytest.mark.parametrize("entry", PUBLISHED)
def test_every_published_file_converts_in_and_out_with_nothing_missing_or_left_over(entry: str) -> None:
    file = {name: torch.empty(shape, device="meta") for name, shape in PUBLISHED[entry].items()}
    family, share = recognise(file)
    reading = read(family, file)
    assert share == 1 and not reading.unexplained

    model = model_of(entry)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    has_decoder = any("decoder" in name for name in file)
    wanted = {name for name in shapes if has_decoder or name.startswith("encoder.")}
    if "finetuned" in entry:
        wanted -= NORMS
    read_shapes = {name: tuple(tensor.shape) for name, tensor in reading.tensors.items()}
    classifier = {name for name in read_shapes if name.startswith(("head.", "fc_norm."))}
    assert bool(classifier) == entry.startswith("vit_")
    assert {n: read_shapes[n] for n in read_shapes if n not in classifier} == {n: shapes[n] for n in wanted}

    back = write(family, reading.tensors)
    assert {name: tuple(x.shape) for name, x in back.items()} == PUBLISHED[entry] and not reading.aside


@pytest.mark.parametrize("entry", PUBLISHED)
def test_the_report_of_every_published_file_accounts_for_every_parameter(entry: str) -> None:
    file = {name: torch.empty(shape, device="meta") for name, shape in PUBLISHED[entry].items()}
    model = model_of(entry)
    report = load(model, Weights(file, entry))
    fresh = {name for names in report.fresh.values() for name in names}
    assert set(report.loaded) | fresh == set(model.state_dict()) and not set(report.loaded) & fresh
    assert not report.resized
    assert report.decoder == any("decoder" in name for name in file)
    assert set(report.fresh) <= {
        "the file holds no decoder",
        "the file's classifier has its last norm behind the pooling instead",
    }


def test_the_compact_table_is_that_of_the_fact_sheet() -> None:
    counts = {"base": (150, 254, 152, 334), "large": (294, 398, 296, 526), "huge": (390, 494, 392, 654)}
    for size, (encoder, full, finetuned, hub) in counts.items():
        patch = 14 if size == "huge" else 16
        assert len(PUBLISHED[f"mae_vit_{size}_patch{patch}_encoder"]) == encoder
        assert len(PUBLISHED[f"mae_vit_{size}_patch{patch}_full"]) == full
        assert len(PUBLISHED[f"vit_{size}_patch{patch}_finetuned"]) == finetuned
        assert len(PUBLISHED[f"transformers_vit_mae_{size}"]) == hub
