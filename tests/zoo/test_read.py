"""Opening foreign files: containers and wrappers are seen through, nothing pickled runs, damage ends in a sentence."""

import argparse
import builtins
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mimkit.errors import DataError, UserError
from mimkit.zoo.read import read_tensors

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2, dtype=torch.bfloat16)}


class Evil:
    """Unpickled by the ordinary reader it writes a file."""

    def __init__(self, call: object, *arguments: object) -> None:
        self.parts = (call, arguments)

    def __reduce__(self) -> tuple:
        return self.parts


def assert_read(path: Path) -> None:
    read = read_tensors(path).tensors
    assert set(read) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "whole",
    [
        TENSORS,
        {"model": TENSORS},
        {"state_dict": {f"module.{name}": x for name, x in TENSORS.items()}},
        {"model": {name: torch.nn.Parameter(x, requires_grad=False) for name, x in TENSORS.items()}},
        {"state_dict": {f"model._orig_mod.{name}": x for name, x in TENSORS.items()}, "epoch": 3},
        {
            "model": TENSORS,
            "optimizer": {"state": {0: {"step": 1}}},
            "args": argparse.Namespace(lr=0.1, path=Path("x")),
        },
        {"args": argparse.Namespace(lr=0.1), "model": {**TENSORS, "note": "text"}},
    ],
    ids=["bare", "model", "ddp", "parameters", "lightning", "namespace", "namespace and note"],
)
def test_tensors_are_found_in_whatever_holds_them(tmp_path: Path, whole: dict, legacy: bool) -> None:
    torch.save(whole, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert_read(tmp_path / "w.pth")


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "w.safetensors")
    assert_read(tmp_path / "w.safetensors")


def test_top_level_extras_are_named(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "epoch": 3, "args": argparse.Namespace()}, tmp_path / "w.pth")
    assert read_tensors(tmp_path / "w.pth").extras == ("epoch", "args")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("how", ["os.system", "eval", "open", "exec in the state dict"])
def test_nothing_pickled_is_executed(tmp_path: Path, how: str, legacy: bool) -> None:
    victim = tmp_path / "victim"
    evil = {
        "os.system": Evil(os.system, f"touch {victim}"),
        "eval": Evil(builtins.eval, f"open({str(victim)!r}, 'w')"),
        "open": Evil(builtins.open, str(victim), "w"),
        "exec in the state dict": Evil(builtins.exec, f"open({str(victim)!r}, 'w')"),
    }[how]
    whole = {"model": {**TENSORS, "z": evil}} if "state" in how else {"args": evil, "model": TENSORS}
    torch.save(whole, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert_read(tmp_path / "w.pth")
    assert not victim.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_bomb_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Evil(os.system, f"touch {tmp_path / 'victim'}")))
    with pytest.raises(DataError):
        read_tensors(tmp_path / "w.pth")
    assert not (tmp_path / "victim").exists()


def test_a_pickled_model_object_is_refused_with_advice(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"save the model's state_dict\(\)"):
        read_tensors(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "w.pt"))
    with pytest.raises(DataError, match="TorchScript"):
        read_tensors(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("w.pth", b"", "empty"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        ("w.bin", b"\n<!DOCTYPE html><html>Not found</html>", "web page"),
        ("w.pth", b"\x93NUMPY\x01\x00v\x00", "damaged, cut short or no torch file"),
        ("w.pt", b"PK\x03\x04 and then nothing", "damaged, cut short or no torch file"),
        ("w.safetensors", b"\xff" * 64, "no safetensors file"),
        ("w.safetensors", b"{}", "no safetensors file"),
    ],
)
def test_what_is_no_file_of_weights_ends_in_one_sentence(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_tensors(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_file_cut_short_is_refused(tmp_path: Path, ending: str, share: float) -> None:
    path = tmp_path / f"w.{ending}"
    big = {"a": torch.randn(200, 50)}
    torch.save({"model": big}, path) if ending == "pth" else save_file(big, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match="copy"):
        read_tensors(path)


def test_a_missing_file_a_folder_and_a_picture_are_mistakes_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    for path in (tmp_path / "none.pth", tmp_path, tmp_path / "photo.jpg"):
        with pytest.raises(UserError):
            read_tensors(path)


def test_a_mapping_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "history": [1.0, 2.0]}, tmp_path / "w.pth")
    with pytest.raises(DataError, match="no tensors by name"):
        read_tensors(tmp_path / "w.pth")


def test_a_torch_file_cut_short_and_a_bare_pickle_say_so_in_one_whole_sentence(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:2000])
    (tmp_path / "bare.pth").write_bytes(pickle.dumps([1, 2]))
    for name, reason in (("cut.pth", "central directory"), ("bare.pth", "Invalid magic number")):
        with pytest.raises(DataError, match=rf"{reason}[^.]*\); copy or download it again\."):
            read_tensors(tmp_path / name)
    assert not recwarn.list
