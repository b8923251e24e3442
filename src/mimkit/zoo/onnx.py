"""Weights out as an ONNX program that gives features: any batch, and for a plain ViT any size of image.

torch's own exporter writes it (`torch.onnx.export` on `torch.export`), and onnxruntime is asked at once whether it
answers as torch does, for a batch and a size that the exporter did not see. A position table is resampled inside the
program, so the sides of an image need only be multiples of the patch; nothing is padded there.
"""

import importlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimkit.encoders.base import Encoder
from mimkit.encoders.vit import ViT
from mimkit.errors import DataError, UserError
from mimkit.zoo.export import Files, Subject
from mimkit.zoo.folders import CONFIG

log = logging.getLogger(__name__)

FILE = "model.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
LARGEST = 1.8e9  # bytes of weights inside the file; a protobuf ends at 2 GiB
TOLERANCE = 1e-4  # of the largest value: what another order of summation may make of float32
OUTPUTS = {
    "features": "(batch, {width}, rows, columns), a vector for every {patch} pixels, behind the last norm",
    "mean": "(batch, {width}), the mean of these",
    "class_token": "(batch, {width})",
    "logits": "(batch, {classes}), before the softmax",
}


def to_onnx(subject: Subject, folder: Path) -> Files:
    """Write `folder`/model.onnx: images (batch, C, height, width), normalised, to the outputs that config.json names.

    Raises UserError when the extra `onnx` is not installed, DataError when onnxruntime answers otherwise than torch.
    """
    _require()
    program = _program(subject).eval()
    dynamic = isinstance(program, _ViTProgram)
    names = program.outputs
    _write(program, subject, folder / FILE, names, dynamic)
    largest = _compare(program, subject, folder / FILE, dynamic)
    log.info("onnxruntime answers as torch does: the largest difference is %.1g", largest)
    described = _describe(subject, names, dynamic)
    height, width = subject.recipe.data.size
    wanted = names[0] if subject.head is None else names[-1]
    use = (
        "import onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("FOLDER/{FILE}")\n'
        f"# images: float32 (batch, {subject.encoder.channels}, {height}, {width}), normalised as below\n"
        f'(answer,) = session.run(["{wanted}"], {{"images": images}})'
    )
    return Files({}, {CONFIG: described}, use, "onnx", tuple(_notes(subject, dynamic)))


class _Program(nn.Module):
    """Any encoder, for images of the size it was built for."""

    def __init__(self, encoder: Encoder, head: nn.Module | None, pooling: str) -> None:
        super().__init__()
        self.encoder, self.head, self.pooling = encoder, head, pooling

    @property
    def outputs(self) -> list[str]:
        token = ["class_token"] if getattr(self.encoder, "prefix_tokens", 0) else []
        return ["features", "mean", *token, *([] if self.head is None else ["logits"])]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.encoder(images)
        return self.answers(features.map(), features.prefix)

    def answers(self, features: Tensor, prefix: Tensor | None) -> tuple[Tensor, ...]:
        """features (B, C, h, w) and prefix (B, n, C) as the outputs, in their order."""
        given = [features, features.mean((2, 3))]
        if prefix is not None:
            given.append(prefix[:, 0])
        if self.head is not None:
            given.append(self.head(given[1] if self.pooling == "mean" else given[2]))
        return tuple(given)


class _ViTProgram(_Program):
    """A plain ViT for images of any size: what decides by the size in Python is written as operations here."""

    encoder: ViT

    def __init__(self, encoder: ViT, head: nn.Module | None, pooling: str) -> None:
        super().__init__(encoder, head, pooling)
        table = encoder.pos_embed.detach()[:, encoder.prefix_tokens :]
        self.register_buffer("table", table.reshape(1, *encoder.grid, -1).permute(0, 3, 1, 2).contiguous())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        patches = self.encoder.patch_embed.proj(images)  # (B, C, h, w)
        grid = patches.shape[2:]
        assert isinstance(self.table, Tensor)
        positions = F.interpolate(self.table, size=grid, mode="bicubic", align_corners=False)
        tokens, _ = self.encoder.run(patches.flatten(2).mT, positions.flatten(2).mT)
        first = self.encoder.prefix_tokens
        features = tokens[:, first:].mT.unflatten(2, grid)
        return self.answers(features, tokens[:, :first] if first else None)


def _program(subject: Subject) -> _Program:
    kind = _ViTProgram if isinstance(subject.encoder, ViT) else _Program
    return kind(subject.encoder, subject.head, subject.pooling)  # type: ignore[arg-type]


def _require() -> None:
    try:
        for name in NEEDED:
            importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"An ONNX export needs {', '.join(NEEDED)} ({error}); install them with `pip install 'mimkit[onnx]'`."
        ) from None


def _write(program: _Program, subject: Subject, path: Path, names: Sequence[str], dynamic: bool) -> None:
    """Trace, convert, describe, save."""
    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if dynamic:
        axes |= {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    with torch.no_grad():
        made = torch.onnx.export(
            program,
            (_images(subject, 2, dynamic),),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=list(names),
            dynamic_shapes={"images": axes},
        )
    assert made is not None
    for node in made.model.graph.all_nodes():
        node.metadata_props.clear()  # file names and source lines of this machine
    described = _describe(subject, names, dynamic)
    made.model.metadata_props.update({key: json.dumps(value) for key, value in described.items()})
    size = sum(x.numel() * x.element_size() for x in program.state_dict().values())
    made.save(path, external_data=size > LARGEST)


def _compare(program: _Program, subject: Subject, path: Path, dynamic: bool) -> float:
    """The largest difference between torch and onnxruntime. Raises DataError where it is more than rounding."""
    import onnxruntime

    images = _images(subject, 3, dynamic)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        ours = program(images)
    largest = 0.0
    for name, x, y in zip(program.outputs, ours, theirs, strict=True):
        difference = (x - torch.from_numpy(y)).abs().max().item()
        largest = max(largest, difference)
        if not difference <= TOLERANCE * max(1.0, x.abs().max().item()):
            raise DataError(
                f"onnxruntime answers otherwise than torch: {name} differs by {difference:.1g}; "
                "install the versions that mimkit is tested with (constraints.txt) and export again."
            )
    return largest


def _images(subject: Subject, batch: int, dynamic: bool) -> Tensor:
    """Noise of the usual size, for a program of any size a few patches larger and never square."""
    size = list(subject.recipe.data.size)
    if dynamic:
        size = [
            side + (axis + 1) * batch * cell
            for axis, (side, cell) in enumerate(zip(size, subject.encoder.unit, strict=True))
        ]
    noise = torch.Generator().manual_seed(batch)
    return torch.randn(batch, subject.encoder.channels, *size, generator=noise)


def _describe(subject: Subject, names: Sequence[str], dynamic: bool) -> dict[str, Any]:
    """What config.json and the program's own metadata say."""
    mean, std = subject.statistics
    unit = list(subject.encoder.levels[-1].stride)
    words = {
        "width": subject.encoder.levels[-1].channels,
        "patch": " x ".join(map(str, unit)),
        "classes": len(subject.classes),
    }
    return {
        "format": "onnx",
        "encoder": subject.recipe.encoder.name,
        "images": "float32 (batch, channels, height, width), values in 0..1, minus mean, over std",
        "size": "any, in multiples of the patch" if dynamic else list(subject.recipe.data.size),
        "patch": unit,
        "channels": subject.encoder.channels,
        "mean": mean,
        "std": std,
        "outputs": {name: OUTPUTS[name].format(**words) for name in names},
        "classes": list(subject.classes),
    }


def _notes(subject: Subject, dynamic: bool) -> list[str]:
    notes = []
    if not dynamic:
        height, width = subject.recipe.data.size
        notes.append(f"The program takes images of {height} x {width} alone, any number of them.")
    if subject.has("decoder"):
        notes.append("The decoder is not in the program.")
    return notes
