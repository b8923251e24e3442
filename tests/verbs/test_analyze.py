"""`mimkit analyze`: every kind of model on the same images, one folder with page, numbers and figures; one sentence
for what cannot be done.
"""

import base64
import csv
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import mimkit
from mimkit.analysis.headline import headline
from mimkit.cli import main
from mimkit.data.sampling import epoch_order
from mimkit.data.sources import open_source
from mimkit.errors import DataError, UserError
from mimkit.verbs.analyze import Analysis

SMALL = (
    "encoder.name=vit:48x3x3",
    "data.size=32",
    "data.workers=0",
    "train.precision=fp32",
    "log.writers=[]",
)
NAMES = {"distance", "entropy", "kl", "cka", "effective-rank", "spectrum", "frequencies"}


@pytest.fixture(scope="module")
def masked(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MAE of a few steps."""
    run = tmp_path_factory.mktemp("runs") / "masked"
    decoder = ("method.decoder.depth=1", "method.decoder.width=48", "log.samples_every=1000")
    settings = [
        *SMALL,
        *decoder,
        "encoder.patch=8",
        f"data.path={faces}",
        f"train.run={run}",
        "train.epochs=2",
    ]
    mimkit.pretrain("mae_tiny", settings)
    return run


@pytest.fixture(scope="module")
def found(masked: Path, tuned: Path, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    out = tmp_path_factory.mktemp("analysis") / "both"
    return mimkit.analyze([masked, tuned], faces, out=out, images=60, labels=True)


def analyze(models: list[str | Path], faces: Path, out: Path, **options: object) -> Analysis:
    return mimkit.analyze(models, faces, out=out, **({"images": 12} | options))


def test_a_masked_and_a_supervised_run_stand_side_by_side(found: Analysis) -> None:
    page = found.report.read_text()
    figures = {path.stem for path in (found.out / "figures").glob("*.svg")}
    assert figures == {path.stem for path in (found.out / "figures").glob("*.png")}
    assert figures >= NAMES | {"cka-between", "features-0", "features-1", "gallery-0", "probes", "training"}
    assert "masked" in page and "tuned" in page and "http" not in page.replace("http://www.w3.org", "")
    assert page.count("<h2") == 10 and "In the paper:" in page
    assert len(page) < 6 * 2**20


def test_the_numbers_are_the_same_in_every_table(found: Analysis) -> None:
    import pyarrow.parquet as parquet

    content = json.loads((found.out / "numbers.json").read_text())
    with (found.out / "numbers.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = parquet.read_table(found.out / "numbers.parquet").to_pydict()
    assert table["metric"] == content["table"]["metric"] == [row["metric"] for row in rows]
    assert {row["model"] for row in rows} == {"masked", "tuned"}
    assert set(table["metric"]) >= {
        "distance",
        "entropy",
        "kl",
        "cka_unbiased",
        "effective_rank",
        "linear_mean",
    }
    first = found.study.models[0].attention
    means = [
        v
        for v, m, h in zip(table["value"], table["metric"], table["head"], strict=True)
        if m == "distance" and h is None
    ]
    assert means[0] == pytest.approx(float(first.layers[0].distance.mean()))


def test_both_models_see_the_same_images_in_the_same_order(found: Analysis) -> None:
    first, second = (model.attention for model in found.study.models)
    assert np.array_equal(first.ids, np.arange(60)) and np.array_equal(second.ids, first.ids)
    assert [finding.rule for finding in found.study.findings][-1] in ("comparison", "no_difference")
    assert any(finding.rule == "mask" for finding in found.study.findings)


def test_the_maps_of_the_page_are_the_attention_of_the_model(
    found: Analysis, masked: Path, faces: Path
) -> None:
    from mimkit.analysis.maps import attention_maps
    from mimkit.verbs.analyze_models import Sample, open_subjects

    packed = found.study.viewer[0]
    entry = packed["layers"][-1]
    raw = zlib.decompress(base64.b64decode(entry["data"][0]))
    maps = entry["heads"] * entry["queries"][0] * entry["queries"][1]
    top = np.frombuffer(raw, "<f4", maps)
    roots = np.frombuffer(raw, np.uint8, offset=4 * maps).reshape(maps, -1)
    (subject,) = open_subjects([masked], ())
    shown = found.study.viewer[0]["names"][0]
    sample = Sample(subject, open_source(faces), sample_ids(faces, shown))
    exact = attention_maps(subject.module, sample.few(1)[0].images, [entry["layer"]]).layers[0]
    want = exact.attention[0, :, exact.prefix :, exact.prefix :]
    want = (want / want.sum(-1, keepdim=True)).reshape(maps, -1).numpy()
    assert np.allclose(top[:, None] * (roots / 255) ** 2, want, atol=float(want.max()) / 100)


def sample_ids(faces: Path, name: str) -> list[int]:
    source = open_source(faces)
    return [i for i in range(len(source)) if Path(source.key(i)).name == name][:1]


def test_an_earlier_analysis_is_written_anew_and_anything_else_is_refused(
    faces: Path, tmp_path: Path
) -> None:
    model, out = "random:vit:48x3x3", tmp_path / "out"
    quick = {"only": ["attention"], "overrides": ["data.size=32", "encoder.patch=8"]}
    analyze([model], faces, out, **quick)
    (out / "mine.txt").write_text("kept")
    analyze([model], faces, out, **(quick | {"only": ["spectrum"]}))
    assert {path.stem for path in (out / "figures").glob("*.png")} == {
        "effective-rank",
        "spectrum",
        "frequencies",
    }
    assert (out / "mine.txt").read_text() == "kept"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds something that is no analysis"):
        analyze([model], faces, tmp_path / "other", **quick)


def test_one_of_a_thing_is_said_in_the_singular(faces: Path, tmp_path: Path) -> None:
    model, words = "random:mcmae:24-32-48x1-1-1x3", ["data.size=64"]
    one = analyze([model], faces, tmp_path / "one", images=1, only=["attention"], overrides=words)
    assert f"1 image of {faces}" in one.report.read_text() and "(1 image)" in one.lines()[0]
    two = analyze([model], faces, tmp_path / "two", images=2, only=["attention", "spectrum"], overrides=words)
    assert f"1 of the 3 blocks of {model} attends; layers" in two.notes[0]
    for found in (one, two):
        said = found.report.read_text() + " ".join(found.lines())
        assert not re.findall(r"\b1 (?:images|tokens|layers|blocks)\b", said)


def test_images_that_no_model_can_read_are_refused_with_the_reason(masked: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "bands.npy", np.zeros((5, 32, 32, 7), dtype=np.uint8))
    with pytest.raises(DataError, match=r"None of the 5 images .* can be read, the first one: .*data check"):
        analyze([masked], tmp_path / "bands.npy", tmp_path / "out")
    assert not (tmp_path / "out" / "report.html").exists()


def test_settings_speak_of_attention_only_where_it_was_measured(
    found: Analysis, masked: Path, faces: Path
) -> None:
    assert "after softmax" in dict(found.study.settings)["attention"]
    other = analyze([masked], faces, found.out.parent / "spectrum", images=4, only=["spectrum"])
    assert dict(other.study.settings)["analyses"] == "spectrum"
    assert "attention" not in dict(other.study.settings) and "after softmax" not in other.report.read_text()


def test_a_gallery_shows_the_ratios_that_a_small_grid_can_hold(
    masked: Path, faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="mimkit")
    words = ["data.size=16"]  # 2 x 2 cells: 90 % would leave nothing to see
    found = analyze([masked], faces, tmp_path / "out", images=4, only=["gallery"], overrides=words)
    (sheet,) = found.study.sheets
    assert sheet.columns == ("image", "50% hidden", "painted", "75% hidden", "painted") and not found.notes
    assert "No panel with 90 % hidden" in caplog.text


@pytest.mark.parametrize(
    ("model", "says", "figures"),
    [
        (
            "random:timm:convnext_atto",
            "its depth-wise kernels are read",
            {"kernel-distance", "kernel-kl", "cka"},
        ),
        ("random:timm:resnet10t", "neither attention nor depth-wise kernels", {"cka", "features-0"}),
    ],
)
def test_a_model_without_attention_gets_what_applies_and_a_word_about_it(
    faces: Path, tmp_path: Path, model: str, says: str, figures: set[str]
) -> None:
    found = analyze([model], faces, tmp_path / "out", images=4, overrides=["data.size=64"])
    assert any(says in note for note in found.notes)
    drawn = {path.stem for path in (tmp_path / "out" / "figures").glob("*.svg")}
    assert figures <= drawn and "distance" not in drawn


def test_where_only_some_blocks_attend_the_page_says_how_layers_are_counted(
    faces: Path, tmp_path: Path
) -> None:
    model, only = "random:mcmae:24-32-48x1-1-2x3", ["attention", "spectrum"]
    found = analyze([model], faces, tmp_path / "out", images=4, only=only, overrides=["data.size=64"])
    assert (
        f"2 of the 4 blocks of {model} attend; layers of attention are counted among those" in found.notes[0]
    )
    names, rows = headline(found.study)
    assert rows[0][names.index("layers")] == "4 (2 attend)"


def test_windows_other_depths_and_other_sizes_stand_side_by_side_with_a_word(
    faces: Path, tmp_path: Path
) -> None:
    models = ["random:timm:swinv2_cr_tiny_ns_224", "random:vit:48x3x3"]
    only = ["attention", "cka", "maps"]
    swin = analyze(models[:1], faces, tmp_path / "swin", images=4, only=["attention"])
    assert "relative-distance" in {path.stem for path in (tmp_path / "swin" / "figures").glob("*.svg")}
    assert any(layer.window for layer in swin.study.models[0].attention.layers)
    found = analyze(
        [*models[1:], "random:timm:vit_tiny_patch16_224"], faces, tmp_path / "out", images=4, only=only
    )
    assert any("different numbers of attention layers" in note for note in found.notes)
    assert found.study.cross[0].values.shape == (3, 12)


def test_a_model_of_transformers_is_looked_into(faces: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3}
    config = transformers.Dinov2Config(**sizes, image_size=56, patch_size=14)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    found = analyze([f"hf:{tmp_path / 'dino'}"], faces, tmp_path / "out", labels=True, images=20)
    (model,) = found.study.models
    assert len(model.attention.layers) == 3 and model.size == (56, 56) and not found.notes
    assert {row.layer for row in model.probes.rows} == {1, 2, 3}
    assert model.probes.stored_mib == pytest.approx(20 * 3 * 48 * 4 / 2**20)
    settings = dict(found.study.settings)
    assert "MiB of features held" in settings["probes"] and "images and features held" in settings["CKA"]


PAIR = ["random:vit:48x3x3", "random:vit:32x2x2"]
TINY = ["data.size=32", "encoder.patch=8", "train.precision=fp32"]


def on_command_line(faces: Path, out: Path, *words: str) -> tuple[dict[str, object], str]:
    """numbers.json and the text of the page after `mimkit analyze` of a pair of models on 20 images."""
    assert (
        main(["analyze", *PAIR, *TINY, "--data", str(faces), "--images", "20", "--out", str(out), *words])
        == 0
    )
    page = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", (out / "report.html").read_text(), flags=re.S)
    return json.loads((out / "numbers.json").read_text()), page


@pytest.mark.parametrize(
    ("words", "title", "metric", "how"),
    [
        (
            ["--cka-block", "8"],
            "CKA",
            "cka_unbiased",
            "all its tokens in a row; unbiased HSIC over blocks of up to 8",
        ),
        (
            ["--cka-examples", "tokens", "--cka-estimator", "biased", "--cka-block", "0"],
            "biased CKA of tokens",
            "cka_biased_tokens",
            "each token is an example; biased HSIC over all 20 images at once",
        ),
        (
            ["--cka-examples", "pooled"],
            "CKA of pooled tokens",
            "cka_unbiased_pooled",
            "the mean over its tokens; unbiased HSIC over all 20 images at once",
        ),
    ],
)
def test_which_cka_is_said_everywhere_and_holds_within_and_between_models(
    words: list[str], title: str, metric: str, how: str, faces: Path, tmp_path: Path
) -> None:
    numbers, page = on_command_line(faces, tmp_path / "out", "--only", "cka", *words)
    table = numbers["table"]
    assert set(table["metric"]) == {metric} and set(table["model_b"]) == set(PAIR)
    assert how in numbers["settings"]["CKA"] and f"lowest {title} (layers)" in numbers["headline"][0]
    head = title[0].upper() + title[1:]
    assert f"<h3>{head} between layers</h3>" in page and f"<h3>{head} between two models</h3>" in page
    assert page.count(how) == 3  # under both figures and among the settings
    usual, biased = metric == "cka_unbiased", "biased CKA" in title
    assert ("about 0.9 to 1" in page) == usual and ("are not held against it" in page) != usual
    assert page.count("Biased: for few examples in a block") == 2 * biased
    assert {found["rule"] for found in numbers["findings"]} == {
        "one_representation" if usual else "lowest_cka"
    }
    assert all(f"{title} is lowest" in found["text"] for found in numbers["findings"])


def test_a_choice_of_cka_gives_the_numbers_of_the_analysis_alone(faces: Path, tmp_path: Path) -> None:
    from mimkit.analysis import cka
    from mimkit.verbs.analyze_models import Sample, open_subjects

    found = mimkit.analyze(
        PAIR, faces, TINY, tmp_path / "out", images=20, only=["cka"], cka_estimator="biased", cka_block=0
    )
    first, second = open_subjects(PAIR, TINY)
    source, ids = open_source(faces), np.sort(epoch_order(0, 0, 200)[:20]).tolist()
    samples = [Sample(one, source, ids) for one in (first, second)]
    modules = first.module, second.module
    alone = cka(*modules, samples[0], estimator="biased", block=None, loader_b=samples[1])
    np.testing.assert_allclose(found.study.cross[0].values, alone.values, atol=1e-9)
    assert found.study.cross[0].block is None and found.study.models[0].cka.estimator == "biased"


def test_images_left_out_of_cka_and_models_without_common_tokens_are_noted(
    faces: Path, tmp_path: Path
) -> None:
    found = mimkit.analyze(
        [PAIR[0], "random:timm:convnext_atto"],
        faces,
        out=tmp_path / "out",
        images=6,
        overrides=["data.size=64"],
        only=["cka"],
        cka_examples="tokens",
        cka_block=4,
    )
    assert not found.study.cross and len(found.study.models[0].cka.values) == 3
    for start in (
        "CKA between random:vit:48x3x3 and random:timm:",
        "random:timm:convnext_atto: cka was left out.",
    ):
        assert any(note.startswith(start) and "same examples" in note for note in found.notes)
    assert (
        "CKA: 2 images were left out: a last block of fewer than 4 cannot be estimated from." in found.notes
    )


@pytest.mark.parametrize(
    ("name", "says"), [("gallery", "gallery was"), ("maps", "maps were"), ("cka", "cka was")]
)
def test_what_is_left_out_agrees_in_number(name: str, says: str, faces: Path) -> None:
    from mimkit.verbs.analyze_models import Sample, left_out, open_subjects

    (subject,) = open_subjects(PAIR[:1], TINY)
    note = left_out(Sample(subject, open_source(faces), [0]), name, UserError("It has none."))
    assert note == f"{PAIR[0]}: {says} left out. It has none."


def test_a_network_without_attention_is_judged_by_its_cka(faces: Path, tmp_path: Path) -> None:
    """Its probes count blocks, as all its charts do, though its features come by stages."""
    options = {
        "overrides": ["data.size=64"],
        "labels": True,
        "images": 20,
        "only": ["cka", "spectrum", "probes"],
    }
    found = analyze(["random:timm:convnext_atto"], faces, tmp_path / "out", **options)
    (model,) = found.study.models
    assert len(model.cka.layers_a) == len(model.layers.layers) == 12
    assert {row.layer for row in model.probes.rows} == set(range(1, 13))
    assert len(found.study.findings) == 1 and "CKA is lowest" in found.study.findings[0].text


def test_two_models_of_one_name_are_told_apart(faces: Path, tmp_path: Path) -> None:
    overrides = ["data.size=32", "encoder.patch=8"]
    found = analyze(
        ["random:vit:48x3x3"] * 2, faces, tmp_path / "out", only=["attention", "cka"], overrides=overrides
    )
    assert [model.label for model in found.study.models] == ["random:vit:48x3x3", "random:vit:48x3x3 (2)"]
    assert np.allclose(np.diag(found.study.cross[0].values), 1)


def test_without_pyarrow_the_table_is_left_out_with_its_reason(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    found = analyze(["random:vit:48x3x3"], faces, tmp_path / "out", only=["spectrum"])
    assert any("mimkit[tables]" in note for note in found.notes)
    assert not (tmp_path / "out" / "numbers.parquet").exists()


def spoil(run: Path, to: Path) -> Path:
    """A copy of the newest weights of a run in which one is NaN."""
    from safetensors.torch import load_file, save_file

    file = max(run.glob("checkpoints/step-*/model.safetensors"))
    tensors = load_file(file)
    name = next(name for name in tensors if name.startswith("encoder.") and "qkv" in name)
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, to)
    return to


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["random:vit_tinny"], 2, "vit_tiny"),
        (["nowhere"], 2, "nothing at nowhere"),
        (["random:vit:48x3x3", "--images", "2"], 2, "CKA needs at least 4 images and there are 2"),
        (["random:vit:48x3x3", "--only", "atention"], 2, "Did you mean 'attention'?"),
        (
            ["random:vit:48x3x3", "--cka-examples", "imges"],
            2,
            "known are images, tokens, pooled. Did you mean 'images'?",
        ),
        (["random:vit:48x3x3", "--cka-estimator", "biast"], 2, "Did you mean 'biased'?"),
        (
            ["random:vit:48x3x3", "--cka-block", "3"],
            2,
            "--cka-block 3: CKA needs at least 4 images in a block; 0",
        ),
        (["random:vit:48x3x3", "--only", "maps", "--cka-block", "0"], 2, "--only maps leaves cka out"),
        (["random:vit:48x3x3", "--only", "probes"], 2, "probes need labelled images"),
        (["random:vit:48x3x3", "--only", "gallery"], 2, "None of the analyses could be done"),
        (["random:vit:48x3x3", "--runs", "nowhere"], 2, "no run folder"),
        (["random:vit:48x3x3", "--out", "/proc/analysis"], 2, "/proc/analysis cannot be written"),
        (["data.size=32"], 2, "no model to analyse"),
    ],
)
def test_a_mistake_gets_one_sentence(
    words: list[str], code: int, says: str, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if "--out" in words else ["--out", str(tmp_path / "out")]
    assert main(["analyze", *words, "--data", str(faces), *out]) == code
    error = capsys.readouterr().err.strip().splitlines()
    assert says in error[-1] and "Traceback" not in " ".join(error)


def test_weights_that_are_no_numbers_are_refused(masked: Path, faces: Path, tmp_path: Path) -> None:
    file = spoil(masked, tmp_path / "spoiled.safetensors")
    with pytest.raises(UserError, match="no finite numbers"):
        analyze([file], faces, tmp_path / "out", overrides=["data.size=32"])


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises((UserError, DataError), match="empty"):
        mimkit.analyze(["random:vit:48x3x3"], tmp_path / "empty", out=tmp_path / "out")
