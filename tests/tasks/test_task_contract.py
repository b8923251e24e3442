"""The contract of a task, for every task that mimkit has, on a small ViT."""

from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mimkit import tasks
from mimkit.data.batch import Batch
from mimkit.encoders.vit import ViT
from mimkit.engine.loop import fit
from mimkit.engine.optimiser import adamw, layer_decay_groups
from mimkit.engine.options import FitOptions
from mimkit.engine.schedule import Schedule
from mimkit.errors import UserError
from mimkit.tasks import Task, evaluate

OPTIONS: dict[str, dict[str, Any]] = {"classify": {"classes": ["a", "b", "c"]}}
TARGETS: dict[str, Tensor] = {"classify": torch.tensor([0, 1, 2, 1])}
every = pytest.mark.parametrize("name", tasks.names())


def encoder_of() -> ViT:
    torch.manual_seed(0)
    return ViT(16, 2, 2, patch=(4, 4), size=(16, 16))


def task_of(name: str) -> Task:
    return tasks.build(name, encoder_of(), **OPTIONS[name])


def batch_of(name: str, seed: int = 0) -> Batch:
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Batch(images, torch.arange(4), targets=TARGETS[name])


@every
def test_the_engine_calls_its_losses(name: str) -> None:
    task, batch = task_of(name), batch_of(name)
    assert torch.equal(task(batch).total, task.losses(batch).total) and task(batch).total.ndim == 0


@every
def test_every_trained_parameter_gets_a_gradient(name: str) -> None:
    task = task_of(name)
    task(batch_of(name)).total.backward()
    without = [n for n, p in task.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@every
def test_what_is_frozen_is_not_trained(name: str) -> None:
    task = task_of(name)
    task.encoder.requires_grad_(False)
    assert {f"encoder.{n}" for n, _ in task.encoder.named_parameters()} <= task.frozen()


@every
def test_predicting_looks_at_no_target_and_keeps_no_graph(name: str) -> None:
    task, batch = task_of(name).eval(), batch_of(name)
    blind = Batch(batch.images, batch.ids)
    a, b = task.predict(batch), task.predict(blind)
    for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
        assert torch.equal(x, y) and not x.requires_grad


@every
def test_layers_grow_from_the_patches_to_the_head(name: str) -> None:
    task = task_of(name)
    depths = {n: task.depth_of(n) for n, _ in task.named_parameters()}
    assert depths["encoder.patch_embed.proj.weight"] == 0
    assert {d for n, d in depths.items() if not n.startswith("encoder.")} == {task.layers}
    assert max(depths.values()) == task.layers


@every
def test_evaluation_in_parts_gives_the_numbers_of_the_whole(name: str) -> None:
    task, batches = task_of(name).train(), [batch_of(name, seed) for seed in range(3)]
    whole = evaluate(task, batches, lambda batch: batch)
    parts = [evaluate(task, [batch], lambda batch: batch) for batch in batches]
    parts[0].merge(parts[1:])
    assert parts[0].result() == pytest.approx(whole.result())
    assert task.training  # it is left as it was


@every
def test_a_batch_without_a_readable_image_is_passed_over(name: str) -> None:
    task, batch = task_of(name), batch_of(name)
    empty = Batch(batch.images[:0], batch.ids[:0], targets=batch.targets[:0])
    found = evaluate(task, [empty, batch], lambda batch: batch).result()
    assert found == evaluate(task, [batch], lambda batch: batch).result()


@every
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_it_draws_what_it_predicts_beside_loaded_images(name: str, dtype: torch.dtype) -> None:
    task, batch = task_of(name), batch_of(name)
    pixels = torch.rand(batch.images.shape)
    loaded = pixels if dtype == torch.float32 else (pixels * torch.iinfo(dtype).max).to(dtype)
    figure = task.draw(Batch(loaded, batch.ids, targets=batch.targets), task.predict(batch))
    assert isinstance(figure, Figure)


@every
def test_the_engine_trains_it_with_layer_wise_rates(name: str, tmp_path: Any) -> None:
    task, batch = task_of(name), batch_of(name)
    groups = layer_decay_groups(task, 0.05, 0.65, task.depth_of, task.layers)
    options = FitOptions(Schedule(0.01, epochs=15, steps_per_epoch=1), micro_batch=4, writers=())
    before = float(task(batch).total.detach())
    fit(task, adamw(groups), lambda start: iter([batch] * 15), lambda b: b, options, tmp_path, bar=False)
    assert float(task(batch).total.detach()) < 0.7 * before


def test_an_unknown_task_is_met_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"Unknown task 'clasify'.*Did you mean 'classify'"):
        tasks.build("clasify", encoder_of())


@every
def test_it_compiles_without_a_graph_break(name: str) -> None:
    task, batch = task_of(name), batch_of(name)
    compiled = torch.compile(task, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch).total, task(batch).total)
