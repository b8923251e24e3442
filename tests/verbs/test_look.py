"""Pictures of images with many channels: which of them are shown, and a choice that cannot be shown; pictures of what
was hidden, at the ratios that so many patches can hold.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mimkit
from mimkit.cli import main
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


def briefly(photographs: Path, run: Path, *overrides: str) -> Path:
    """A run of one step on images of 2 x 2 patches."""
    settings = ["data.size=16", "encoder.patch=8", "encoder.name=vit:24x1x2", "method.decoder.depth=1"]
    settings += ["train.epochs=1", "train.batch_size=4", "schedule.warmup_epochs=0", "data.workers=0"]
    settings += ["log.writers=[]", f"data.path={photographs}", f"train.run={run}", *overrides]
    mimkit.pretrain("mae_tiny", settings)
    return run


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    return tmp_path / "images.npy"


def test_usual_mask_ratios_that_leave_nothing_to_see_are_left_out_with_a_word(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = briefly(photographs, tmp_path / "run")
    assert main(["reconstruct", str(run), "--out", str(tmp_path / "picture.png")]) == 0
    assert (
        "No panel with 90 % hidden: A mask ratio of 0.9 leaves nothing visible of 4 cells"
        in capsys.readouterr().err
    )
    two = mimkit.reconstruct(run, out=tmp_path / "two.png", ratios=(0.5, 0.7))
    assert (tmp_path / "picture.png").stat().st_size > 0 and two.is_file()
    assert main(["reconstruct", str(run), "--out", str(tmp_path / "none.png"), "--ratios", "0.5,0.9"]) == 2
    assert "--ratios 0.9: A mask ratio of 0.9 leaves nothing visible" in capsys.readouterr().err
    assert not (tmp_path / "none.png").exists()


def test_a_run_with_grid_masking_is_drawn_at_its_own_ratio(photographs: Path, tmp_path: Path) -> None:
    run = briefly(photographs, tmp_path / "run", "method.mask.kind=grid")
    assert mimkit.reconstruct(run, out=tmp_path / "picture.png").is_file()
    with pytest.raises(UserError, match=r"--ratios 0.5: Grid masking"):
        mimkit.reconstruct(run, out=tmp_path / "none.png", ratios=(0.5,))
