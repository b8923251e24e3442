"""Pictures of images with many channels: which of them are shown, and a choice that cannot be shown."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mimkit
from mimkit.errors import UserError


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """Six images of five channels, each channel of a brightness of its own."""
    pixels = np.empty((6, 48, 48, 5), dtype=np.uint8)
    pixels[:] = (0, 60, 120, 180, 240)
    np.save(tmp_path / "stack.npy", pixels)
    return tmp_path / "stack.npy"


def colours(picture: Path) -> set[tuple[int, ...]]:
    """The colours that fill a fiftieth of a picture or more."""
    with Image.open(picture) as opened:
        shown = opened.convert("RGB")
        found = shown.getcolors(1 << 24)
        assert found is not None
        return {colour for count, colour in found if count > shown.width * shown.height / 50}


def test_a_contact_sheet_shows_the_channels_that_were_chosen(stack: Path, tmp_path: Path) -> None:
    words = [f"data.path={stack}", "data.mean=[0,0,0,0,0]", "data.std=[1,1,1,1,1]", "data.channels=5"]
    first = mimkit.data_show("mae_tiny", words, tmp_path / "first.png")
    chosen = mimkit.data_show("mae_tiny", [*words, "log.channels=[4,2,0]"], tmp_path / "chosen.png")
    grey = mimkit.data_show("mae_tiny", [*words, "log.channels=[3]"], tmp_path / "grey.png")
    assert (0, 60, 120) in colours(first)
    assert (240, 120, 0) in colours(chosen)
    assert (180, 180, 180) in colours(grey)


@pytest.mark.parametrize("channels", ["[0,1,5]", "[0,1]"])
def test_channels_that_cannot_be_shown_are_refused_before_the_run(
    stack: Path, tmp_path: Path, channels: str
) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"log.channels: .*one or three channels from 0 to 4"):
        mimkit.pretrain(
            "mae_tiny",
            [f"data.path={stack}", f"train.run={run}", "train.batch_size=2", f"log.channels={channels}"],
        )
    assert not (run / "checkpoints").exists()
