"""Recipes from names, files, run folders and overrides: what is read, what is merged, what is refused and how."""

import subprocess
import sys
from pathlib import Path

import pytest

from mimkit.errors import UserError
from mimkit.recipes import load
from mimkit.recipes.faults import JOB_OPTIONS, find, keys
from mimkit.recipes.schema import Recipe


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def faults(source: str | Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load.resolve(source, overrides)
    lines = str(caught.value).splitlines()
    return lines if len(lines) == 1 else [line.strip() for line in lines[1:]]


def test_overrides_follow_yaml_without_its_traps() -> None:
    recipe = load.resolve(
        "mae_tiny",
        [
            "optimiser.base_lr=1e-4",
            "train.epochs=1e1",
            "train.seed=010",
            "train.run=off",
            "train.compile=yes",
            "data.mean=[0.1, 2e-1, 3.e-1]",
            "data.std=[.1,.1,.1]",
            "data.size=[64,96]",
            "log.writers=[]",
            "optimiser.clip=null",
        ],
    )
    assert recipe.optimiser.base_lr == 1e-4
    assert (recipe.train.epochs, recipe.train.seed, recipe.train.run, recipe.train.compile) == (
        10,
        10,
        "off",
        True,
    )
    assert recipe.data.mean == (0.1, 0.2, 0.3)
    assert recipe.data.size == (64, 96)
    assert recipe.log.writers == ()
    assert recipe.optimiser.clip is None


@pytest.mark.parametrize(
    "text",
    [
        "2024",
        "no",
        "1e-4",
        "shards/{0000..0999}.tar",
        "*.jpg",
        "s3://bucket/a#b: c",
        "~/x",
        "a=b",
        "'",
        "- x",
    ],
)
def test_text_is_kept_as_it_was_written_in_overrides(text: str) -> None:
    assert load.resolve("mae_tiny", [f"data.path={text}"]).data.path == text


def test_null_and_quotes_have_their_meaning_in_text_too() -> None:
    assert load.resolve("mae_tiny", ["data.path=x", "data.path=null"]).data.path is None
    assert load.resolve("mae_tiny", ["data.path='null'"]).data.path == "null"


def test_text_is_kept_as_it_was_written_in_files(tmp_path: Path) -> None:
    path = write(
        tmp_path, "a.yaml", "name: 007\ndata: {path: 2024}\ntrain: {run: no}\nencoder: {init: 1e-4}\n"
    )
    recipe = load.resolve(path)
    assert (recipe.name, recipe.data.path, recipe.train.run, recipe.encoder.init) == (
        "007",
        "2024",
        "no",
        "1e-4",
    )


def test_the_last_override_of_a_key_wins() -> None:
    assert load.resolve("mae_tiny", ["train.epochs=3", "train.epochs=5"]).train.epochs == 5


def test_an_override_may_give_a_whole_section() -> None:
    recipe = load.resolve(
        "mae_tiny", ["log.probe={path: faces, folds: 3}", "log.probe.folds=4", "method={mask: {ratio: 0.5}}"]
    )
    assert recipe.log.probe is not None
    assert (recipe.log.probe.path, recipe.log.probe.folds) == ("faces", 4)
    assert (recipe.method.mask.ratio, recipe.method.decoder.width) == (0.5, 128)
    assert load.resolve("mae_tiny", ["log.probe.path=faces", "log.probe=null"]).log.probe is None


def test_a_file_extends_a_packaged_recipe_and_another_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        "night.yaml",
        "extends: mae_small\nabout: At night.\nmethod: {min_std: 0.05}\ntrain: {epochs: 100}\n",
    )
    path = write(tmp_path, "dawn.yaml", "extends: night.yaml\ntrain: {seed: 3}\nschedule:\n")
    recipe = load.resolve(path, ["train.batch_size=8"])
    assert (recipe.name, recipe.about) == ("dawn", "")  # what a variant is called and says is its own affair
    assert (recipe.encoder.name, recipe.method.min_std, recipe.train.epochs) == ("vit_small", 0.05, 100)
    assert (recipe.train.seed, recipe.train.batch_size) == (3, 8)


def test_an_empty_file_is_the_recipe_of_all_defaults(tmp_path: Path) -> None:
    assert load.resolve(write(tmp_path, "recipe.yml", "# nothing\n")) == Recipe()


def test_a_run_folder_gives_its_recipe(tmp_path: Path) -> None:
    recipe = load.resolve("mae_tiny", ["data.path=photos", "train.micro_batch=16"])
    write(tmp_path, "recipe.yaml", load.dump(recipe))
    assert load.resolve(tmp_path) == recipe
    assert load.resolve(str(tmp_path), ["train.epochs=2"]).train.epochs == 2


def test_all_faults_of_a_file_and_of_the_overrides_come_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "mine.yaml",
        "extends: mae_tiny\ntrain:\n  epoch: 5\n  seed: true\noptimiser:\n  base_lr: fast\n"
        "method:\n  mask: {ratio: 1.5}\n",
    )
    found = faults(
        path, "method.name=mea", "data.size=60", "trian.epochs=3", "nonsense", "log.probe.every_epochs=3"
    )
    assert found == [
        "train.epoch (mine.yaml, line 3): there is no such key. Did you mean 'train.epochs'?",
        "trian.epochs: there is no such key. Did you mean 'train.epochs'?",
        "'nonsense': an override is written key.path=value, with no blanks around the equals sign.",
        "method.name: 'mea' given; allowed: 'mae' or 'mcmae'. Did you mean 'mae'?",
        "method.mask.ratio (mine.yaml, line 8): 1.5 given; allowed: a number greater than 0 and less than 1.",
        "optimiser.base_lr (mine.yaml, line 6): 'fast' given; allowed: a number greater than 0.",
        "train.seed (mine.yaml, line 4): 'true' given; allowed: a whole number of at least 0.",
        "log.probe.path: missing; give text.",
        "data.size: the height 60 is not a multiple of the patch height 8; use 56 or 64, or another encoder.patch.",
        "data.size: the width 60 is not a multiple of the patch width 8; use 56 or 64, or another encoder.patch.",
    ]


@pytest.mark.parametrize(
    ("override", "guess"),
    [
        ("train.epoch=3", "train.epochs"),
        ("epochs=3", "train.epochs"),
        ("lr=3", "optimiser.lr"),
        ("trian.epochs=3", "train.epochs"),
        ("optimizer.weight_decay=0", "optimiser.weight_decay"),
        ("method.decoder.dpth=3", "method.decoder.depth"),
        ("train.batch=3", "train.batch_size"),
        ("data={pth: x}", "data.path"),
    ],
)
def test_a_mistyped_key_gets_the_nearest_one(override: str, guess: str) -> None:
    assert faults("mae_tiny", override)[0].endswith(f"there is no such key. Did you mean '{guess}'?")


def test_a_key_that_is_near_none_gets_the_list_of_its_section() -> None:
    [line] = faults("mae_tiny", "log.qqqq=1")
    assert (
        line
        == "log.qqqq: there is no such key. log has: every, samples_every, evaluate_every, writers, channels, probe."
    )


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.epochs=0", "train.epochs: 0 given; allowed: a whole number of at least 1."),
        ("train.epochs=2.5", "train.epochs: 2.5 given; allowed: a whole number of at least 1."),
        ("train.device=gpu", "train.device: 'gpu' given; allowed: 'auto', 'cpu', 'cuda' or 'mps'."),
        ("optimiser.clip=.inf", "optimiser.clip: .inf given; allowed: a number greater than 0, or null."),
        ("train=4", "train: 4 given; allowed: a section with epochs, batch_size,"),
        ("data.flip=[1]", "data.flip: [1] given; allowed: a number from 0 to 1."),
        (
            "data.crop_ratio=[1]",
            "data.crop_ratio: [1] given; allowed: two numbers greater than 0, as [a, b].",
        ),
        ("data.crop_scale=[1,0.5]", "data.crop_scale: 1.0 comes before 0.5; give the smaller one first."),
        ("data.size=[8,8,8]", "data.size: [8, 8, 8] given; allowed: a whole number of at least 1, or two as"),
        ("encoder.patch=0", "encoder.patch: 0 given; allowed: a whole number of at least 1, or two as"),
        ("log.writers=[wandb,csv]", "log.writers: [wandb, csv] given; allowed: a list of 'tensorboard',"),
        ("method.decoder.heads=7", "method.decoder.heads: 7 heads do not divide the decoder's width 128;"),
        ("data.mean=[0.5]", "data.std: missing beside data.mean; give both or neither."),
        ("train.epochs=", "train.epochs: no value given; write `null` for none."),
        ("train.epochs=[1", "train.epochs: '[1' is not a value: line 1, column 3: not valid YAML"),
        ("train.epochs=!!python/none 1", "train.epochs: '1' with the tag"),
        ("=3", "'=3': an override is written key.path=value"),
        (
            "/",
            "'/': an override is written key.path=value, with no blanks around the equals sign. Images are named",
        ),
        (
            "nodes=4",
            "nodes: there is no such key; nodes= belongs to a job, so add --launch slurm, or --launch local",
        ),
        ("time=1-0", "time: there is no such key; time= belongs to a job"),
    ],
)
def test_a_value_that_cannot_be_says_what_can(override: str, sentence: str) -> None:
    [line] = faults("mae_tiny", override)
    assert line.startswith(sentence)


def test_channels_mean_and_deviation_must_agree() -> None:
    found = faults("mae_tiny", "data.channels=3", "data.mean=[0.5]", "data.std=[0.5,0.5]")
    assert found == [
        "data.channels: the numbers of channels differ (data.channels 3, data.mean 1, data.std 2); make them equal."
    ]


def test_what_a_value_was_given_is_shortened() -> None:
    [line] = faults("mae_tiny", f"train.epochs={'x' * 500}")
    assert len(line) < 200


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: [", "mine.yaml: line 1, column 9: not valid YAML"),
        ("- a\n- b\n", "mine.yaml: a recipe is made of `key: value` lines, and this file is not."),
        (
            "train: {seed: 1}\ntrain: {seed: 2}\n",
            "train (mine.yaml, line 1): given twice, on lines 1 and 2; keep one.",
        ),
        ("a: &x 1\nb: *x\n", "mine.yaml: line 2, column 4: not valid YAML (aliases"),
        ("a: &x [*x]\n", "mine.yaml: line 1, column 8: not valid YAML (aliases"),
        ("[1, 2]: 3\n", "mine.yaml: line 1: a key must be a single word."),
        ("name: !!python/object:os.system {}\n", "name: a section given; allowed: text."),
        (
            "extends: mae_tinny\n",
            "extends (mine.yaml, line 1): There is no recipe 'mae_tinny'. Did you mean 'mae_tiny'?",
        ),
        ("extends: gone.yaml\n", "extends (mine.yaml, line 1): The recipe file gone.yaml does not exist;"),
        (
            "extends: mine.yaml\n",
            "extends (mine.yaml, line 1): the files extend each other in a circle (mine.yaml -> mine.yaml)",
        ),
    ],
)
def test_a_file_that_cannot_be_read_says_where(tmp_path: Path, text: str, sentence: str) -> None:
    [line] = faults(write(tmp_path, "mine.yaml", text))
    assert line.startswith(sentence) or line.startswith(sentence.replace(":", " (mine.yaml, line 1):", 1))


def test_a_circle_of_files_is_named(tmp_path: Path) -> None:
    write(tmp_path, "b.yaml", "extends: c.yaml\n")
    write(tmp_path, "c.yaml", "extends: b.yaml\n")
    [line] = faults(write(tmp_path, "a.yaml", "extends: b.yaml\n"))
    assert "in a circle (b.yaml -> c.yaml -> b.yaml); break it." in line


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("mae_bsae", "There is no recipe 'mae_bsae'. Did you mean 'mae_base'? A YAML file"),
        (
            "xyz",
            "There is no recipe 'xyz'. Known: mae_tiny, mae_small, mae_base, mae_large, mae_huge, ...; `mimkit recipes "
            "list` names all. A YAML file",
        ),
        ("gone/mine.yaml", "The recipe file gone/mine.yaml does not exist;"),
        ("data.path=photos", "'data.path=photos' is an override; name a recipe before it"),
        ("", ". is a folder without a recipe.yaml"),
    ],
)
def test_a_source_that_is_not_there_says_what_is(
    source: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [line] = faults(source or ".")
    assert line.startswith(sentence)


def test_a_picture_is_not_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    assert faults(path) == [f"{path} is not a text file; a recipe is YAML in UTF-8."]


def test_a_difference_names_fields_and_values_in_the_schemas_order() -> None:
    old = load.resolve("mae_tiny", ["train.epochs=3"])
    new = load.resolve("mae_tiny", ["train.epochs=4", "data.path=x", "log.probe={path: faces}"])
    changes = load.difference(old, new)
    assert changes[:2] == [("data.path", None, "x"), ("train.epochs", 3, 4)]
    assert ("log.probe.path", None, "faces") in changes
    assert load.difference(old, old) == []


def test_every_key_of_the_schema_is_found_and_has_a_sentence() -> None:
    for key in keys():
        info = find(key)
        assert info is not None and info.description, key
    assert find("train.nothing") is None and find("train.epochs.deeper") is None and find("") is None


def test_reading_recipes_needs_no_torch() -> None:
    code = "import sys; from mimkit.recipes import load, choose; load.show(load.resolve('mae_base')); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_recipe_pretrains_or_has_a_task() -> None:
    assert load.resolve("mae_tiny").task is None and load.resolve("finetune_vit_tiny").method is None
    assert Recipe().method is not None
    [fault] = faults("mae_tiny", "task.head=probe")
    assert fault.startswith("task: this recipe has a section `method` too")
    [fault] = faults("finetune_vit_tiny", "method.mask.ratio=0.5")
    assert "leave one of the two out" in fault
    with pytest.raises(UserError, match="mimkit finetune"):
        _ = load.resolve("finetune_vit_tiny").pretraining
    with pytest.raises(UserError, match="mimkit pretrain"):
        _ = load.resolve("mae_tiny").tuning


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.shots=3", "data.label_share=0.5"], "data.shots: 3 images of each class and a share of 0.5"),
        (["task.head=probe", "task.blocks=2"], "task.blocks: 2 blocks cannot be trained"),
        (["task.smoothing=1"], "task.smoothing: 1 given; allowed: a number from 0"),
        (["data.val_share=0.9"], "data.val_share: 0.9 given; allowed: a number from 0 to 0.5"),
    ],
)
def test_what_a_task_cannot_be_is_said(overrides: list[str], says: str) -> None:
    [fault] = faults("finetune_vit_tiny", *overrides)
    assert fault.startswith(says.partition(" from ")[0])


def test_pretraining_looks_at_no_labels() -> None:
    [fault] = faults("mae_tiny", "data.val=labelled/")
    assert "log.probe.path" in fault


def test_weights_stand_above_packaged_recipes_and_below_everything_else(tmp_path: Path) -> None:
    said = ["encoder.patch=8", "data.size=64"]
    assert load.resolve("finetune_vit_base", weights=said).data.size == (64, 64)
    mine = write(tmp_path, "mine.yaml", "extends: finetune_vit_base\ndata:\n  size: 96\n")
    recipe = load.resolve(mine, weights=said)
    assert (recipe.data.size, recipe.encoder.patch) == ((96, 96), (8, 8))
    assert load.resolve(mine, ["data.size=32"], said).data.size == (32, 32)
    own = write(tmp_path, "own.yaml", "data:\n  size: 96\n")
    assert load.resolve(own, weights=said).data.size == (96, 96)


def test_no_section_of_a_recipe_is_called_like_an_option_of_a_job() -> None:
    assert not set(JOB_OPTIONS) & set(Recipe.model_fields)


def test_lars_takes_no_layer_wise_rates_in_silence() -> None:
    with pytest.raises(
        UserError, match=r"optimiser\.layer_decay: a decay of 0\.75 has no place in LARS.*null"
    ):
        load.resolve("linear_probe_vit_base", ["optimiser.layer_decay=0.75"])
    assert load.resolve("linear_probe_vit_base", ["optimiser.layer_decay=null"]).optimiser.name == "lars"


def test_a_mistyped_folder_of_images_is_told_from_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "holiday").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"Did you mean 'holiday'\? .* and images for `mimkit pretrain`"):
        load.resolve("holidya")
