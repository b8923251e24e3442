"""Starts compared: equal settings, cells that are kept, and a plan that is checked before anything is computed."""

import json
from pathlib import Path

import pytest
import torch

import mimkit
from mimkit import encoders
from mimkit.errors import DataError, UserError
from mimkit.verbs import compare as comparing
from mimkit.verbs import compare_plan, models
from mimkit.verbs.compare_plan import Plan, fitting_batch, make_plan
from mimkit.verbs.models import open_model
from mimkit.zoo.weights import Weights

SETTINGS = ("data.workers=0", "train.precision=fp32", "train.epochs=2", "schedule.warmup_epochs=1")
RECIPE = "finetune_vit_tiny"


def plan(inits: list[str], faces: Path, out: Path, *overrides: str, seeds: int = 2) -> Plan:
    settings = [f"data.path={faces}", *SETTINGS, *overrides]
    return make_plan(inits, settings, out, seeds, (0.05, 1.0), RECIPE)


def test_one_encoder_has_one_baseline_of_random_weights(tuned: Path, faces: Path, tmp_path: Path) -> None:
    made = plan(["random", str(tuned)], faces, tmp_path)
    assert [(start.name, start.init) for start in made.starts] == [("random", None), (str(tuned), str(tuned))]
    random, trained = (made.recipe_of(start) for start in made.starts)
    assert random.encoder.model_copy(update={"init": str(tuned)}) == trained.encoder
    assert random.data == trained.data and random.optimiser == trained.optimiser


def test_several_encoders_have_a_baseline_each(tuned: Path, faces: Path, tmp_path: Path) -> None:
    torch.save(open_model("random:vit_tiny").encoder.state_dict(), tmp_path / "tiny.pth")
    made = plan(["random", str(tuned), str(tmp_path / "tiny.pth")], faces, tmp_path)
    names = [str(tuned), str(tmp_path / "tiny.pth")]
    assert [start.name for start in made.starts] == [*(f"random like {name}" for name in names), *names]
    encoders = [made.recipe_of(start).encoder.name for start in made.starts]
    assert encoders == ["vit:48x3x3", "vit_tiny"] * 2


def test_a_hybrid_encoder_and_a_plain_one_share_a_recipe_that_both_can_have(
    tuned: Path, faces: Path, tmp_path: Path
) -> None:
    own = "random:mcmae:16-24-48x1-1-2x3"
    for starts, recipe in (
        ([tuned, "random:mcmae_tiny"], "finetune_mcmae_tiny"),
        ([own], "finetune_mcmae_base"),
        ([tuned], "finetune_vit_base"),
    ):
        made = make_plan(starts, [f"data.path={faces}", "data.size=32"], tmp_path, 1, (1.0,), None)
        assert made.recipe == recipe
        recipes = [made.recipe_of(start) for start in made.starts]
        assert [r.encoder.name for r in recipes] == [start.model.encoder.name for start in made.starts]
        assert len({r.optimiser.model_dump_json() for r in recipes}) == 1


def test_random_weights_are_compared_on_images_of_any_channels(faces: Path, tmp_path: Path) -> None:
    made = make_plan(
        ["random:vit_tiny"], [f"data.path={faces}", "data.channels=1"], tmp_path, 1, (1.0,), RECIPE
    )
    data = made.recipe_of(made.starts[0]).data
    assert data.channels == 1 and data.mean is not None and len(data.mean) == 1


def test_all_starts_train_the_same_way(tuned: Path, faces: Path, tmp_path: Path) -> None:
    made = plan(["random", str(tuned), "random:vit_tiny"], faces, tmp_path)
    recipes = [made.recipe_of(start, *made.course(start, 0.05)) for start in made.starts]
    for section in ("optimiser", "schedule", "train", "task"):
        assert len({getattr(recipe, section).model_dump_json() for recipe in recipes}) == 1


def test_fewer_labels_take_fewer_steps_in_smaller_batches_and_more_passes(
    tuned: Path, faces: Path, tmp_path: Path
) -> None:
    made = plan([str(tuned)], faces, tmp_path, "train.epochs=20", "schedule.warmup_epochs=2")
    assert made.labels == {0.05: 8, 1.0: 160}
    few, many = (made.recipe_of(made.starts[0], *made.course(made.starts[0], share)) for share in (0.05, 1.0))
    assert (many.train.batch_size, many.train.epochs, many.schedule.warmup_epochs) == (32, 20, 2)
    assert (few.train.batch_size, few.train.epochs) == (4, 11)  # 22 steps, the root of a twentieth of 100
    assert few.schedule.warmup_epochs == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("batch", "images", "fits"), [(1024, 4096, 1024), (1024, 160, 64), (32, 160, 32), (32, 5, 2), (32, 2, 2)]
)
def test_a_batch_leaves_two_steps_an_epoch_where_it_can(batch: int, images: int, fits: int) -> None:
    assert fitting_batch(batch, images) == fits


def test_shares_of_the_same_images_are_one(
    tuned: Path, faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_plan([str(tuned)], [f"data.path={faces}"], tmp_path, 1, (0.001, 0.01, 0.0125, 1.0), RECIPE)
    assert made.labels == {0.0125: 2, 1.0: 160}
    assert "0.1 % of the labels are the same 2 images" in caplog.text


@pytest.mark.parametrize(
    ("inits", "overrides", "says"),
    [
        ([], [], "--inits random"),
        (["random"], [], "says no encoder"),
        (["{tuned}"], ["data.val_share=0"], "data.val="),
        (["{tuned}"], ["train.seed=3"], "sets that itself"),
        (["{tuned}"], ["encoder.init=x"], "sets that itself"),
        (["nowhere"], [], "nowhere"),
        (["{tuned}"], ["train.epochs=0"], "train.epochs"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(
    inits: list[str], overrides: list[str], says: str, tuned: Path, faces: Path, tmp_path: Path
) -> None:
    starts = [text.format(tuned=tuned) for text in inits]
    with pytest.raises((UserError, DataError), match=says):
        mimkit.compare(starts, [f"data.path={faces}", *overrides], tmp_path / "out", recipe=RECIPE)
    assert not (tmp_path / "out").exists()


def test_a_recipe_for_another_kind_of_encoder_is_refused_with_one_that_fits(
    tuned: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: finetune_mcmae_tiny\nencoder: {kernel: 3}\n")
    cases = (
        (["random:mcmae_tiny"], RECIPE, "is for plain ViTs, and .* --recipe finetune_mcmae_tiny, or"),
        (
            [tuned, "random:mcmae_tiny"],
            RECIPE,
            "MCMAE's encoders .mcmae_tiny.; use --recipe finetune_mcmae_tiny, or",
        ),
        (
            [tuned],
            str(own),
            "is for MCMAE's encoders, and .* is one of plain ViTs .* --recipe finetune_vit_base, or",
        ),
        ([tuned], "finetune_mcmae_tiny", "data.path"),  # sets nothing that a plain ViT lacks
    )
    for starts, recipe, says in cases:
        with pytest.raises(UserError, match=says):
            mimkit.compare(starts, [], tmp_path / "out", recipe=recipe)
    for recipe in (RECIPE, "finetune_mcmae_tiny"):  # another fault is not taken for it
        with pytest.raises(UserError, match=r"train\.epochs" if "mcmae" in recipe else "is for plain ViTs"):
            mimkit.compare(["random:mcmae_tiny"], ["train.epochs=0"], tmp_path / "out", recipe=recipe)


@pytest.mark.parametrize(
    ("seeds", "shares", "says"), [(0, (1.0,), "--seeds"), (1, (0.0,), "--shares"), (1, (), "--shares")]
)
def test_counts_are_checked(
    seeds: int, shares: tuple[float, ...], says: str, tuned: Path, faces: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        mimkit.compare([tuned], [f"data.path={faces}"], tmp_path / "out", seeds, shares)


def test_a_comparison_is_restartable_and_can_grow(
    tuned: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, settings = tmp_path / "out", [f"data.path={faces}", *SETTINGS]
    ran: list[Path] = []
    whole = comparing.finetune.run

    def failing(source: str | Path, overrides: tuple[str, ...] = (), resume: bool = False) -> object:
        outcome = whole(source, overrides, resume)
        ran.append(outcome.run)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return outcome

    def compare(seeds: int) -> object:
        return mimkit.compare(["random", tuned], settings, out, seeds, (0.05, 1.0), RECIPE)

    monkeypatch.setattr(comparing.finetune, "run", failing)
    with pytest.raises(KeyboardInterrupt):
        compare(1)
    assert not (out / "compare.json").exists()
    first = compare(1)
    assert (
        len(ran) == 4 + 1
    )  # the third one had been trained, not yet measured: it is taken up, not made anew
    assert first.lines() == compare(1).lines() and len(ran) == 5  # type: ignore[attr-defined]
    assert len(set(ran)) == 4
    again = compare(2)
    assert len(ran) == 9 and again.seeds == (0, 1)  # type: ignore[attr-defined]
    table = json.loads((out / "compare.json").read_text())
    assert table["verdict"] == again.verdict() and len(table["table"]) == 2 * 3 * 2  # type: ignore[attr-defined]
    assert (out / "compare.png").is_file()
    assert not list(out.rglob("step-*.safetensors")) and not list(out.rglob("checkpoints"))
    with pytest.raises(UserError, match=r"other settings \(overrides\)"):
        mimkit.compare(["random", tuned], [*settings, "train.epochs=5"], out, 1, (1.0,), RECIPE)


def test_a_plain_vit_of_timm_is_computed_like_a_run_and_other_models_by_timm(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = dict(open_model("random:vit_tiny").encoder.state_dict())
    found = {
        "timm:vit_tiny_patch16_224.x": Weights(tensors, "vit", (14, 14), architecture="vit_tiny_patch16_224"),
        "timm:resnet10t": Weights(
            {
                name.removeprefix("model."): tensor
                for name, tensor in encoders.build("timm:resnet10t").state_dict().items()
            },
            "resnet",
            size=(64, 64),
            architecture="resnet10t",
        ),
    }
    monkeypatch.setattr(compare_plan, "open_source", found.__getitem__)
    monkeypatch.setattr(models, "open_source", found.__getitem__)
    made = plan(["random", *found], faces, tmp_path)
    names = [made.recipe_of(start).encoder.name for start in made.starts]
    assert names == ["vit_tiny", "timm:resnet10t"] * 2
    decays = [made.recipe_of(start).optimiser.layer_decay for start in made.starts]
    assert decays == [0.75] * 4
