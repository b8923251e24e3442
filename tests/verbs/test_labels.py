"""Labelled sets: what is refused, what is held out, and that neither depends on chance."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimkit.errors import DataError, UserError
from mimkit.recipes import load
from mimkit.recipes.schema import Recipe
from mimkit.verbs.labels import labelled_sets, open_labelled


def folders(root: Path, **counts: int) -> Path:
    """Class folders with so many images each."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(root / name / f"{i}.png")
    return root


def table(root: Path, labels: list[str]) -> Path:
    """A table of images with these labels."""
    folders(root, images=len(labels))
    rows = [f"images/{i}.png,{label}" for i, label in enumerate(labels)]
    (root / "labels.csv").write_text("\n".join(["path,label", *rows]))
    return root / "labels.csv"


def recipe(path: Path, *overrides: str) -> Recipe:
    return load.resolve("finetune_vit_tiny", [f"data.path={path}", *overrides])


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["0", "1", "0.5"], "0.5"),
        (["0", "1", "-1"], "-1"),
        (["0", "1", "nan"], "nan"),
        (["0", "1", "1.0"], "1.0"),
        (["cat", "", "dog"], "no label"),
    ],
)
def test_a_table_whose_labels_are_no_classes_is_refused_and_says_where(
    labels: list[str], says: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        open_labelled(table(tmp_path, labels))
    assert says in str(caught.value) and "labels.csv" in str(caught.value)
    assert "images/2.png" in str(caught.value) or "line 3" in str(caught.value)


def test_names_and_whole_numbers_are_classes(tmp_path: Path) -> None:
    assert open_labelled(table(tmp_path / "a", ["10", "9", "0"])).classes == ("0", "9", "10")
    assert open_labelled(table(tmp_path / "b", ["cat", "0.5", "-1"])).classes == ("-1", "0.5", "cat")


def test_folders_may_be_called_what_their_owner_likes(tmp_path: Path) -> None:
    (tmp_path / "-1").mkdir()
    source = open_labelled(folders(tmp_path / "doses", **{"0.5": 1, "-1": 1}))
    assert source.classes == ("-1", "0.5")


def test_a_class_folder_without_images_is_named(tmp_path: Path) -> None:
    (folders(tmp_path, cat=3) / "dog").mkdir()
    with pytest.raises(DataError, match="'dog'"):
        open_labelled(tmp_path)


def test_a_class_with_one_image_cannot_be_held_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'dog'.*data.val="):
        labelled_sets(recipe(folders(tmp_path, cat=5, dog=1)))


def test_a_class_with_one_image_is_warned_of_where_nothing_is_held_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folders(tmp_path, cat=5, dog=1)
    sets = labelled_sets(recipe(path, "data.val_share=0"))
    assert sets.val is None and len(sets.train) == 6
    assert "'dog' 1" in caplog.text and "task.balance=true" in caplog.text
    caplog.clear()
    labelled_sets(recipe(path, "data.val_share=0", "task.balance=true"))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_the_same_images_of_every_class_are_held_out_whatever_the_seed(tmp_path: Path) -> None:
    path = folders(tmp_path, cat=10, dog=5, eel=2)
    parts = [labelled_sets(recipe(path, f"train.seed={seed}")) for seed in (0, 1)]
    held = [[part.val.key(i) for i in range(len(part.val))] for part in parts if part.val is not None]
    assert held[0] == held[1]
    assert [key.split("/")[0] for key in held[0]] == ["cat", "cat", "dog", "eel"]
    trained = {parts[0].train.key(i) for i in range(len(parts[0].train))}
    assert len(trained) == 13 and not trained & set(held[0])
    assert parts[0].train.digest() == parts[1].train.digest()


def test_few_labels_are_drawn_by_seed_and_lie_within_more(tmp_path: Path) -> None:
    path = folders(tmp_path, cat=20, dog=20)

    def keys(share: str, seed: int) -> set[str]:
        train = labelled_sets(recipe(path, f"data.label_share={share}", f"train.seed={seed}")).train
        return {train.key(i) for i in range(len(train))}

    assert len(keys("0.25", 0)) == 8 and keys("0.25", 0) < keys("0.5", 0)
    assert keys("0.25", 0) != keys("0.25", 1)
    assert len(labelled_sets(recipe(path, "data.shots=3")).train) == 6
    with pytest.raises(DataError, match="16"):
        labelled_sets(recipe(path, "data.shots=17"))


def test_one_image_of_each_class_is_no_matter_of_balance(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labelled_sets(recipe(folders(tmp_path, cat=4, dog=4), "data.shots=1"))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_held_out_images_take_the_numbers_of_the_training_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, val = folders(tmp_path / "train", cat=2, dog=2, eel=2), folders(tmp_path / "val", eel=1, cat=1)
    found = labelled_sets(recipe(train, f"data.val={val}")).val
    assert found is not None and found.classes == ("cat", "dog", "eel")
    assert [found.label(i) for i in range(2)] == [0, 2]
    assert "2 of the 3 classes" in caplog.text


def test_held_out_classes_that_were_never_trained_on_are_refused(tmp_path: Path) -> None:
    train, val = folders(tmp_path / "train", cat=2, dog=2), folders(tmp_path / "val", cat=1, dgo=1)
    with pytest.raises(UserError, match=r"'dgo'.*Did you mean 'dog'\?"):
        labelled_sets(recipe(train, f"data.val={val}"))


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="class folders"):
        labelled_sets(recipe(folders(tmp_path, cat=2) / "cat"))
    with pytest.raises(UserError, match=r"data.path="):
        labelled_sets(load.resolve("finetune_vit_tiny"))


def test_float_labels_of_a_stack_are_named_as_such(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0.0, 1.0, 0.5, 1.0])
    np.savez(tmp_path / "stack.npz", images=images, labels=labels)
    with pytest.raises((DataError, UserError), match="float64"):
        open_labelled(tmp_path / "stack.npz")


@pytest.mark.parametrize("bits", [8, 16])
def test_randaugment_on_more_than_8_bits_is_refused_before_anything_starts(bits: int, tmp_path: Path) -> None:
    pixels = np.full((8, 8), 200, np.uint16 if bits == 16 else np.uint8)
    for number in range(20):
        folder = tmp_path / f"class-{number % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "class-0" / "0.png").write_bytes(b"damaged")
    settings = [f"data.path={tmp_path}", "task.randaugment=rand-m9-mstd0.5-inc1"]
    recipe = load.resolve("finetune_vit_tiny", settings)
    if bits == 8:
        assert len(labelled_sets(recipe).train.classes) == 2
        return
    with pytest.raises(UserError, match=r"8 bits, and 'class-0/.+' of .+ has 16; .+task\.randaugment=null"):
        labelled_sets(recipe)
    without = load.resolve("finetune_vit_tiny", [settings[0], "task.randaugment=null"])
    assert labelled_sets(without).train.classes == ("class-0", "class-1")


@pytest.mark.parametrize(
    ("labels", "said"),
    [([1, 0.5, 1, 1], "0.png the label 1.0|1.png the label 0.5"), ([0, None, 1, 1], "line 2 has no label")],
)
def test_fractions_and_gaps_in_a_parquet_table_are_named(
    labels: list[float | None], said: str, tmp_path: Path
) -> None:
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    folders(tmp_path, images=4)
    paths = [str(tmp_path / "images" / f"{i}.png") for i in range(4)]
    parquet.write_table(pa.table({"path": paths, "label": labels}), tmp_path / "labels.parquet")
    with pytest.raises(DataError, match=said):
        open_labelled(tmp_path / "labels.parquet")
