"""MCMAE from pre-training to classes, as a user does it: fine-tuned, probed, from a run and from a published file."""

import json
from pathlib import Path

import pytest
import torch
from small_runs import answer, rows

import mimkit as library
from mimkit import encoders
from mimkit.errors import DataError, UserError
from mimkit.tasks.classify import Classifier
from mimkit.zoo import publisher
from mimkit.zoo.rules import write

SMALL = ("encoder.name=mcmae:32-48-96x1-1-3x3", "data.size=32", "data.workers=0", "log.writers=[]")


@pytest.fixture(scope="module")
def pretrained(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("mcmae") / "pretrained"
    decoder = ("method.decoder.depth=1", "method.decoder.width=48", "method.decoder.heads=3")
    steps = ("train.epochs=2", "train.batch_size=32", "log.samples_every=1000")
    library.pretrain("mcmae_tiny", [f"data.path={faces}", f"train.run={run}", *SMALL, *decoder, *steps])
    return run


def finetuned(recipe: str, faces: Path, run: Path, *more: str) -> list[float]:
    settings = [f"data.path={faces}", f"train.run={run}", *SMALL, "log.samples_every=1000", *more]
    library.finetune(recipe, settings)
    return [row["val/top1"] for row in rows(run) if "val/top1" in row]


def test_a_pretrained_encoder_learns_to_tell_faces_and_goes_out_as_published(
    pretrained: Path, faces: Path, tmp_path: Path
) -> None:
    run = tmp_path / "tuned"
    accuracies = finetuned("finetune_mcmae_tiny", faces, run, f"encoder.init={pretrained}", "train.epochs=6")
    assert accuracies[-1] >= 0.8  # 40 images: chance reaches 0.8 once in 10^4
    assert library.evaluate(run).numbers["top1"] == accuracies[-1]
    exported = library.export(run, "safetensors", tmp_path / "exported").path
    for model in (run, exported):
        library.predict(model, faces, out=tmp_path / "answers.jsonl", sheet=tmp_path / "answers.png")
        lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
        assert len(lines) == 200 and {"face", "other"} == {line["class"] for line in lines}
    with pytest.raises(
        UserError, match=r"timm cannot express this model: .*Use --to safetensors or --to onnx"
    ):
        library.export(run, "timm", tmp_path / "timm")
    file = library.convert(run, tmp_path / "tuned.pth", to="published").path
    names = torch.load(file, weights_only=True)["model"]
    assert {"fc_norm.weight", "head.weight", "blocks1.0.conv1.weight"} <= set(
        names
    ) and "norm.weight" not in names
    with pytest.raises(DataError, match="finetune_vit_tiny builds vit_tiny"):
        library.finetune("finetune_vit_tiny", [f"data.path={faces}", f"encoder.init={file}"])


def test_a_probe_of_a_published_file_trains_its_head_alone(
    pretrained: Path, faces: Path, tmp_path: Path
) -> None:
    file = library.convert(pretrained, tmp_path / "pre.pth", to="published").path
    run = tmp_path / "probe"
    # shapes do not tell heads, and the recipe's name does
    accuracies = finetuned("linear_probe_mcmae_tiny", faces, run, f"encoder.init={file}", "train.epochs=2")
    assert accuracies
    before, after = library.load(pretrained).encoder.state_dict(), library.load(run).encoder.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())


@pytest.mark.parametrize(
    ("trained", "form", "said"),
    [
        (
            "detection",
            "classifier",
            "of the form 'detection', with relative positions that one of the form 'classifier'",
        ),
        ("classifier", "detection", "is a trained classifier, whose encoder attends everywhere"),
    ],
)
def test_a_detector_starts_no_classifier_nor_a_classifier_a_detector(
    trained: str, form: str, said: str, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = encoders.build("mcmae:32-48-96x1-1-3x3", size=(32, 32), form=trained)
    kept = Classifier(encoder, ["face", "other"]) if trained == "classifier" else encoder
    prefix = "" if trained == "classifier" else "encoder."
    tensors = {prefix + name: x for name, x in kept.state_dict().items()}
    torch.save({"model": write(publisher(tensors), tensors)}, tmp_path / "file.pth")
    words = [f"data.path={faces}", f"encoder.init={tmp_path / 'file.pth'}", f"encoder.form={form}", *SMALL]
    code, error = answer(capsys, "finetune", "finetune_mcmae_tiny", *words, f"train.run={tmp_path / 'run'}")
    assert code == 3 and said in error
    last = error.strip().splitlines()[-1]
    assert last.startswith("mimkit: ") and last.endswith("or start from a file of pre-training.")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_form_for_dense_features_starts_from_a_pretrained_run(
    pretrained: Path, faces: Path, tmp_path: Path
) -> None:
    run = tmp_path / "windows"
    form = (
        "encoder.form=detection",
        "encoder.window=[1, 2]",
        "encoder.shifted=true",
        "encoder.global_blocks=[1]",
    )
    finetuned("finetune_mcmae_tiny", faces, run, f"encoder.init={pretrained}", "train.epochs=1", *form)
    opened = library.load(run)
    assert opened.recipe.encoder.window == (1, 2)
    assert opened.encoder.state_dict()["relative.windowed.table"].abs().max() > 0  # it has trained
