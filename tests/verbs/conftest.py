"""A small labelled set and a run on it, made once."""

from pathlib import Path

import pytest

import mimkit
from mimkit.verbs.demo import write_faces

SMALL = (  # an encoder of three small blocks on 32 pixels: a step in a few milliseconds
    "encoder.name=vit:48x3x3",
    "data.size=32",
    "data.workers=0",
    "train.precision=fp32",
    "log.writers=[]",
)


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 faces and 100 other pictures in class folders."""
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder)
    return folder


@pytest.fixture(scope="session")
def tuned(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of faces, trained for a few seconds."""
    run = tmp_path_factory.mktemp("runs") / "tuned"
    mimkit.finetune("finetune_vit_tiny", [*SMALL, f"data.path={faces}", f"train.run={run}", "train.epochs=8"])
    return run
