"""Counts beside the tables of the papers and what an optimiser step really keeps."""

from functools import partial

import pytest
import torch

from mimkit import encoders, tasks
from mimkit.analysis import cost
from mimkit.engine.devices import autocast
from mimkit.masks import RandomMasker
from mimkit.methods.mae import MAE

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "gflop", "count"),
    [
        ("vit_base", 35.126, 85_798_656),
        ("vit_large", 123.107, 303_301_632),
        ("vit_huge", 334.588, 630_764_800),
    ],
)
def test_the_encoders_cost_what_the_fact_sheet_measured(name: str, gflop: float, count: int) -> None:
    with torch.device("meta"):
        encoder = encoders.build(name)
    assert cost.encoder_flops(encoder, (224, 224)) / 1e9 == pytest.approx(gflop, abs=1e-3)
    assert cost.parameters(encoder) == count


def test_operations_are_the_same_on_the_meta_device_and_on_a_cpu() -> None:
    with torch.device("meta"):
        counted = cost.encoder_flops(encoders.build("vit_tiny", size=(32, 48), patch=(8, 8)), (32, 48))
    assert cost.encoder_flops(encoders.build("vit_tiny", size=(32, 48), patch=(8, 8)), (32, 48)) == counted


def small() -> MAE:
    encoder = encoders.build("vit_tiny", size=(32, 32), patch=(8, 8))
    return MAE(encoder, RandomMasker(0.75, (8, 8)), (32, 32), 64, 1, 2)


def test_a_step_costs_three_forward_passes() -> None:
    model = small()
    batch = cost.example_batch(model, (32, 32), 1)
    with torch.no_grad():
        forward = cost.flops(lambda: model(batch))
    assert 2.9 < cost.step_flops(model, (32, 32)) / forward < 3.05
    assert all(p.grad is None for p in model.parameters())


def test_activation_memory_halves_in_bf16_and_shrinks_with_checkpointing() -> None:
    model = small()
    full = cost.activation_bytes(model, (32, 32), partial(autocast, "fp32", CPU))
    assert 0.4 < cost.activation_bytes(model, (32, 32), partial(autocast, "bf16", CPU)) / full < 0.8
    model.encoder.checkpointing = True  # type: ignore[assignment]
    assert cost.activation_bytes(model, (32, 32), partial(autocast, "fp32", CPU)) < 0.6 * full


@pytest.mark.parametrize("probe", [False, True])
def test_a_classifier_is_counted_without_a_trace(probe: bool) -> None:
    encoder = encoders.build("vit_tiny", size=(32, 32), patch=(8, 8))
    model = tasks.build("classify", encoder, classes=["a", "b"], probe=probe)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forward = cost.encoder_flops(encoder, (32, 32))
    times = cost.step_flops(model, (32, 32)) / forward
    assert (0.99 < times < 1.01) if probe else (2.8 < times < 3.05)  # a frozen encoder goes forward alone
    assert cost.activation_bytes(model, (32, 32), partial(autocast, "fp32", CPU)) > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
