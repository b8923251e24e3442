"""Folders of real photographs: those inside scikit-image."""

from pathlib import Path

import pytest

from mimkit.verbs.demo import write_faces, write_photographs


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several hundred tiles of real photographs, a sub-folder each."""
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder)
    return folder


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 faces and 100 other pictures in class folders."""
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder)
    return folder


@pytest.fixture(scope="session")
def few(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 of the photographs, for runs of a few steps."""
    folder = tmp_path_factory.mktemp("few")
    for number, path in enumerate(sorted(photographs.rglob("*.jpg"))[::10][:48]):
        (folder / f"{number:03}.jpg").write_bytes(path.read_bytes())
    return folder
