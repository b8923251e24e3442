"""Devices and precisions: chosen by what is there, refused in a sentence."""

import pytest
import torch

from mimkit.engine.devices import (
    _peaks_of,
    autocast,
    choose_device,
    choose_precision,
    measure_gemm,
    multiplies_bf16,
    peak_flops,
)
from mimkit.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_asking_for_a_gpu_where_there_is_none_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"train.device=cuda was asked for.*use train.device=auto"):
        choose_device("cuda")


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU here"
)
def test_auto_takes_the_cpu_where_there_is_nothing_else() -> None:
    assert choose_device("auto") == CPU == choose_device("cpu")


def test_unknown_names_are_refused_and_fp16_is_explained() -> None:
    with pytest.raises(UserError, match=r"use auto, cpu, cuda, mps. Did you mean 'cuda'"):
        choose_device("cudda")
    with pytest.raises(UserError, match="fp16 overflows"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize("able", [True, False])
def test_auto_is_bf16_only_where_the_hardware_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    monkeypatch.setattr("mimkit.engine.devices.multiplies_bf16", lambda _: able)
    assert choose_precision("auto", CPU) == ("bf16" if able else "fp32")
    assert choose_precision("fp32", CPU) == "fp32"


def test_this_cpu_says_what_it_can() -> None:
    assert multiplies_bf16(CPU) in (True, False)


def test_autocast_makes_products_bf16_and_leaves_weights_alone() -> None:
    layer = torch.nn.Linear(4, 4)
    with autocast("bf16", CPU):
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    with autocast("fp32", CPU):
        assert layer(torch.ones(1, 4)).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


def test_the_peak_of_a_cpu_is_measured() -> None:
    assert measure_gemm("fp32", seconds=0.0) > 1e8
    assert peak_flops(torch.device("meta"), "fp32") is None


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_a_gpu_is_known_by_whole_words_of_its_name(name: str, bf16: float | None) -> None:
    found = _peaks_of(name)
    assert (found and found[0]) == bf16
