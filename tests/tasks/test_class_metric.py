"""Accuracy, calibration, confusion and mistakes against plain computations, and where they could go wrong."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from mimkit.data.batch import Batch
from mimkit.errors import DataError, UserError
from mimkit.tasks.class_metric import ClassMetric, ClassPredictions

NAMES = tuple("abcdefgh")


def batch_of(labels: Tensor, first: int = 0) -> Batch:
    return Batch(torch.zeros(len(labels), 1, 1, 1), torch.arange(first, first + len(labels)), targets=labels)


def measured(logits: Tensor, labels: Tensor, names: tuple[str, ...] = NAMES, parts: int = 1) -> ClassMetric:
    metric, done = ClassMetric(names), 0
    for piece, truth in zip(logits.tensor_split(parts), labels.tensor_split(parts), strict=True):
        metric.update(batch_of(truth, done), ClassPredictions(piece))
        done += len(truth)
    return metric


@pytest.fixture(scope="module")
def many() -> tuple[Tensor, Tensor]:
    """500 answers for 8 classes, of which the labels are unequal and the answers somewhat right."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.arange(1.0, 9.0), 500, replacement=True, generator=generator)
    logits = torch.randn(500, 8, generator=generator)
    logits[torch.arange(500), labels] += 1.5
    return logits, labels


def test_shares_agree_with_a_plain_count(many: tuple[Tensor, Tensor]) -> None:
    logits, labels = many
    order = logits.argsort(dim=1, descending=True)
    right = order[:, 0] == labels
    found = measured(logits, labels).result()
    assert found["top1"] == pytest.approx(right.double().mean().item())
    assert found["top5"] == pytest.approx((order[:, :5] == labels[:, None]).any(1).double().mean().item())
    assert found["mean_per_class"] == pytest.approx(
        np.mean([right[labels == c].double().mean().item() for c in range(8)])
    )
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found["images"] == 500


def test_the_calibration_error_agrees_with_its_definition(many: tuple[Tensor, Tensor]) -> None:
    logits, labels = many
    confidence, guess = logits.double().softmax(1).max(1)
    right, error = (guess == labels).double(), 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            error += inside.double().mean().item() * abs(
                right[inside].mean().item() - confidence[inside].mean().item()
            )
    assert measured(logits, labels).result()["calibration_error"] == pytest.approx(error)


def test_any_way_of_cutting_into_batches_gives_the_same(many: tuple[Tensor, Tensor]) -> None:
    whole, parts = measured(*many), measured(*many, parts=7)
    assert whole.result() == pytest.approx(parts.result())
    assert np.array_equal(whole.confusion(), parts.confusion()) and whole.mistakes() == parts.mistakes()


def test_processes_can_send_each_other_their_parts(many: tuple[Tensor, Tensor]) -> None:
    logits, labels = many
    mine, other = ClassMetric(NAMES), ClassMetric(NAMES)
    mine.update(batch_of(labels[:200]), ClassPredictions(logits[:200]))
    other.update(batch_of(labels[200:], 200), ClassPredictions(logits[200:]))
    mine.merge([pickle.loads(pickle.dumps(other))])
    whole = measured(logits, labels)
    assert mine.result() == pytest.approx(whole.result()) and mine.mistakes() == whole.mistakes()


def test_the_confusion_table_has_truths_in_rows(many: tuple[Tensor, Tensor]) -> None:
    logits, labels = many
    table = measured(logits, labels).confusion()
    guesses = logits.argmax(1)
    assert table[2, 5] == ((labels == 2) & (guesses == 5)).sum() and table.sum() == 500
    assert np.array_equal(table.sum(1), labels.bincount(minlength=8).numpy())


def test_rows_say_what_a_class_is_taken_for() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    guesses = torch.tensor([0, 1, 2, 2, 1, 1])
    first, second, third = measured(torch.eye(3)[guesses], labels, ("x", "y", "z")).rows()
    assert (first.images, first.right, first.accuracy, first.taken_for) == (4, 1, 0.25, ("z", 2))
    assert (second.predicted, second.precision, second.taken_for) == (3, 2 / 3, None)
    assert third.images == 0 and math.isnan(third.accuracy) and third.precision == 0


def test_a_class_without_images_does_not_enter_the_mean() -> None:
    metric = measured(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 0, 0]), ("x", "y", "z"))
    assert metric.result()["mean_per_class"] == pytest.approx(2 / 3)


def test_mistakes_come_surest_first_and_are_few() -> None:
    logits = torch.tensor([[0.0, 3.0], [0.0, 1.0], [5.0, 0.0], [0.0, 9.0]])
    metric = ClassMetric(("x", "y"), worst=2)
    metric.update(batch_of(torch.tensor([0, 0, 0, 0]), 10), ClassPredictions(logits))
    assert [(m.id, m.truth, m.predicted) for m in metric.mistakes()] == [(13, 0, 1), (10, 0, 1)]
    assert metric.mistakes()[0].confidence > 0.99


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_with_few_classes_all_are_among_the_first_five(classes: int) -> None:
    found = measured(torch.randn(20, classes), torch.arange(20) % classes, NAMES[:classes]).result()
    assert found["top5"] == 1.0


def test_of_equal_answers_the_lower_class_counts_so_a_silent_model_is_not_right() -> None:
    found = measured(torch.zeros(80, 8), torch.arange(80) % 8).result()
    assert found["top1"] == 1 / 8 and found["top5"] == 5 / 8
    confidences, classes = ClassPredictions(torch.zeros(1, 8)).top(3)
    assert classes.tolist() == [[0, 1, 2]] and confidences.tolist() == [[0.125] * 3]


def test_an_answer_that_is_not_finite_is_wrong() -> None:
    logits = torch.full((2, 3), float("nan"))
    metric = measured(torch.cat([logits, torch.eye(3)[:1]]), torch.tensor([0, 2, 0]), ("x", "y", "z"))
    found = metric.result()
    assert found["top1"] == found["top5"] == pytest.approx(1 / 3) and math.isnan(found["loss"])
    assert [row.right for row in metric.rows()] == [1, 0, 0]


def test_bf16_answers_are_taken() -> None:
    assert measured(torch.eye(3).bfloat16(), torch.arange(3), ("x", "y", "z")).result()["top1"] == 1


def test_bins_of_confidence_can_be_drawn() -> None:
    table = measured(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([0, 0]), ("x", "y")).calibration()
    assert table[-1].tolist() == pytest.approx([2, 0.99988, 0.5], abs=1e-4) and np.isnan(table[0, 1])


def test_ten_thousand_classes_cost_no_matrix() -> None:
    names = tuple(str(i) for i in range(10_000))
    metric = measured(torch.randn(3, 10_000), torch.tensor([0, 5, 9_999]), names)
    assert len(pickle.dumps(metric)) < 1_000_000 and metric.result()["images"] == 3


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_refused(label: int) -> None:
    with pytest.raises(DataError, match=f"Image 1 has the label {label}; the model knows 3 classes"):
        measured(torch.zeros(2, 3), torch.tensor([0, label]), ("x", "y", "z"))


@pytest.mark.parametrize("targets", [None, torch.zeros(2, 3)])
def test_images_without_labels_are_refused(targets: Tensor | None) -> None:
    with pytest.raises(UserError, match="needs a label for each image"):
        ClassMetric(("x", "y", "z")).update(
            Batch(torch.zeros(2, 1, 1, 1), torch.arange(2), targets=targets),
            ClassPredictions(torch.zeros(2, 3)),
        )


def test_nothing_evaluated_is_no_result() -> None:
    with pytest.raises(DataError, match="Not one image"):
        ClassMetric(("x", "y")).result()
