"""A ViT-B exported to ONNX, run by onnxruntime, against the same encoder in torch, on the CPU; reported, without aim.

Somebody who deploys the exported program asks what it costs beside torch. Same threads, fp32, batch of 8, and the
features must agree.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

import mimkit
from benchmarks.mae_step import FULL, QUICK, Case
from benchmarks.pairs import Benchmark, Lap, Options, Row, race

TOLERANCE = 1e-3


class Side(NamedTuple):
    """What both are given; the random weights of a name are the same in every process."""

    case: Case
    folder: Path
    options: Options


def images_of(case: Case) -> torch.Tensor:
    return torch.randn(case.images, 3, case.size, case.size, generator=torch.Generator().manual_seed(1))


def ours(side: Side) -> dict[str, Lap]:
    """onnxruntime on what `mimkit export --to onnx` wrote."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = side.options.threads
    session = onnxruntime.InferenceSession(
        side.folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    given = {"images": images_of(side.case).numpy()}

    def lap() -> float:
        (mean,) = session.run(["mean"], given)
        return float(abs(mean).sum())

    return {"time": lap}


def theirs(side: Side) -> dict[str, Lap]:
    """torch on the weights that were exported."""
    encoder = mimkit.load(f"random:{side.case.encoder}").encoder
    images = images_of(side.case)

    @torch.inference_mode()
    def lap() -> float:
        return float(encoder(images).pooled("mean").abs().sum())

    return {"time": lap}


def rows(options: Options) -> list[Row]:
    case, rounds = QUICK if options.quick else FULL, options.laps(9)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "onnx"
        mimkit.export(f"random:{case.encoder}", "onnx", folder)
        side = Side(case, folder, options)
        result = race(partial(ours, side), partial(theirs, side), options, rounds, TOLERANCE)
    settings = {
        "model": case.encoder,
        "size": case.size,
        "batch": case.images,
        "precision": "fp32",
        "threads": options.threads,
        "rounds": rounds,
    }
    return [result.time("onnx", settings), result.peak("onnx", settings)]


BENCHMARKS = {
    "onnx": Benchmark("an exported ViT-B in onnxruntime against torch, on the CPU (no aim)", rows, {})
}
