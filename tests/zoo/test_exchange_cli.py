"""`mimkit export` and `mimkit convert` on the command line: what is said, and with which exit code."""

from pathlib import Path

import pytest

from mimkit.cli import main

from .small_run import small_run


def test_an_export_says_what_was_written_and_how_to_load_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = small_run(tmp_path / "run")
    out = tmp_path / "out"
    assert main(["export", str(run), "--to", "timm", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"Wrote {out}: README.md, config.json, model.safetensors" in said
    assert f'checkpoint_path="{out}/model.safetensors"' in said


def test_an_export_without_the_decoder_is_an_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = small_run(tmp_path / "run", "data.size=[8, 16]")
    words = ["export", str(run), "--to", "hf", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "ViTMAE wants square images" in capsys.readouterr().err
    assert main([*words, "--no-decoder"]) == 0
    said = capsys.readouterr().out
    assert "ViTModel.from_pretrained" in said and "Mind: transformers takes images of 8 x 16 alone" in said


def test_a_conversion_reports_what_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, method = small_run(tmp_path / "run")
    assert main(["convert", str(run), str(tmp_path / "mae.pth"), "--to", "published"]) == 0
    said = capsys.readouterr().out
    assert (
        f"{len(method.state_dict())} tensors loaded" in said and "Mind: a published file does not say" in said
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["convert", "cut.pth", "out"], 3, "damaged, cut short or no torch file"),
        (["convert", "nothing.pth", "out"], 2, "There is nothing at"),
        (["export", "cut.pth", "--to", "timm", "--out", "out"], 3, "damaged"),
        (["export", "cut.pth", "--to", "tmm", "--out", "out"], 2, "Did you mean 'timm'"),
        (["export", "cut.pth", "--to", "timm"], 2, "--out"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cut.pth").write_bytes(b"PK\x03\x04 and then nothing")
    assert main(words) == code
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown
    assert [path.name for path in tmp_path.iterdir()] == ["cut.pth"]
