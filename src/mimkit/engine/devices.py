"""Where to compute and in which precision, and how fast that place could be at best.

bf16 autocast where the hardware multiplies in bf16, fp32 elsewhere, fp16 never: its range is what makes published
recipes end in NaN (small patches, high resolution, long runs). Weights and optimiser stay fp32 in every case.
"""

import logging
import os
import re
import time
from contextlib import AbstractContextManager, nullcontext

import torch

from mimkit.errors import UserError, nearest

log = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "bf16", "fp32")

# Dense peaks in FLOP/s from the makers' data sheets: words of the device's name -> bf16, fp32 (TF32 off).
PEAKS: dict[str, tuple[float, float]] = {
    "B200": (2250e12, 75e12),
    "GH200": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "A800": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L40": (181e12, 90.5e12),
    "L4": (121e12, 30.3e12),
    "A40": (150e12, 37.4e12),
    "A10G": (70e12, 31.2e12),
    "A10": (125e12, 31.2e12),
    "RTX A6000": (155e12, 38.7e12),
    "RTX 5090": (209e12, 104.8e12),
    "RTX 4090": (165e12, 82.6e12),
    "RTX 3090": (71e12, 35.6e12),
}
GEMM = (1568, 768, 3072)  # rows, inner, columns: the MLP of ViT-B at batch 8
GEMM_SECONDS = 0.2


def choose_device(name: str) -> torch.device:
    """The device to train on: `auto` takes CUDA, then MPS, then the CPU; under torchrun each process its own GPU.

    Raises UserError for an unknown name and for a device that this machine has not.
    """
    if name not in DEVICES:
        raise UserError(
            f"train.device={name} is not known; use {', '.join(DEVICES)}.{nearest(name, DEVICES)}"
        )
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(candidate for candidate in ("cuda", "mps", "cpu") if there[candidate])
    if not there[name]:
        others = ", ".join(candidate for candidate, present in there.items() if present)
        raise UserError(
            f"train.device={name} was asked for, but torch {torch.__version__} finds no such device here; "
            f"use train.device=auto, or one that is here ({others})."
        )
    if name != "cuda":
        return torch.device(name)
    return torch.device("cuda", _gpu_of_this_process())


def choose_precision(name: str, device: torch.device) -> str:
    """`bf16` or `fp32`: `auto` is bf16 on GPUs and CPUs that multiply in it, else fp32.

    Raises UserError for an unknown name and for bf16 on a GPU without it.
    """
    if name not in PRECISIONS:
        hint = (
            " fp16 overflows in attention and is not offered."
            if name == "fp16"
            else nearest(name, PRECISIONS)
        )
        raise UserError(f"train.precision={name} is not known; use {', '.join(PRECISIONS)}.{hint}")
    if name == "auto":
        return "bf16" if multiplies_bf16(device) else "fp32"
    if name == "bf16" and device.type == "cuda" and not multiplies_bf16(device):
        raise UserError(
            f"train.precision=bf16 was asked for, but {torch.cuda.get_device_name(device)} has no bf16; "
            "use train.precision=fp32."
        )
    return name


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware itself multiplies matrices in bf16 (emulation is slower than fp32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.10
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        able = torch.cpu.get_capabilities()
        return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    return False


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass: bf16 autocast, or nothing for fp32."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The most FLOP/s that this device can do: the maker's figure for known GPUs, a short measurement on a CPU.

    None for a GPU that is not in the table: then no share of the peak is shown.
    """
    if device.type == "cuda":
        known = _peaks_of(torch.cuda.get_device_name(device))
        return known and known[0 if precision == "bf16" else 1]
    return measure_gemm(precision) if device.type == "cpu" else None


def _peaks_of(name: str) -> tuple[float, float] | None:
    """The row of PEAKS for a device's name. Whole words: the RTX A4000 is no A40; laptops' chips are slower ones."""
    if "Laptop" in name:
        return None
    return next((peaks for words, peaks in PEAKS.items() if re.search(rf"\b{words}\b", name)), None)


def measure_gemm(precision: str, seconds: float = GEMM_SECONDS) -> float:
    """FLOP/s of a matrix product of ViT-B's size on this CPU with the threads that torch has: the best of a few."""
    rows, inner, columns = GEMM
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds or best == float("inf"):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2.0 * rows * inner * columns / best


def _gpu_of_this_process() -> int:
    """The GPU that torchrun's LOCAL_RANK names; raises UserError when there are fewer GPUs than processes."""
    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= there:
        raise UserError(
            f"Process {local} of this machine has no GPU: torch sees {there}; start at most {there} processes "
            "(torchrun --nproc-per-node) or make more GPUs visible (CUDA_VISIBLE_DEVICES)."
        )
    return local
