"""Parameter groups, clipping, and the update that a flag cancels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mimkit.engine.optimiser import adamw, gradient_norms, layer_decay_groups, pretrain_groups, set_lr, update

GOLDEN = Path(__file__).parents[3] / "shared" / "reference" / "mae" / "golden" / "param_groups.npz"
TRUE, FALSE = torch.tensor(True), torch.tensor(False)


class Bag(nn.Module):
    """Parameters with given names and shapes; dots make submodules."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            *path, last = name.split(".")
            home: nn.Module = self
            for part in path:
                if not hasattr(home, part):
                    home.add_module(part, nn.Module())
                home = home.get_submodule(part)
            home.register_parameter(last, nn.Parameter(torch.ones(shape)))


def vit_names(depth: int, pooled: bool) -> dict[str, tuple[int, ...]]:
    """Names of a ViT classifier with stand-in shapes of the right number of axes, in the published order."""
    inner = {"norm1": 1, "attn.qkv": 2, "attn.proj": 2, "norm2": 1, "mlp.fc1": 2, "mlp.fc2": 2}
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, 2), "pos_embed": (1, 5, 2)}
    shapes |= {"patch_embed.proj.weight": (2, 3, 1, 1), "patch_embed.proj.bias": (2,)}
    for block in range(depth):
        for name, axes in inner.items():
            shapes[f"blocks.{block}.{name}.weight"] = (2,) * axes
            shapes[f"blocks.{block}.{name}.bias"] = (2,)
    norm = "fc_norm" if pooled else "norm"
    shapes |= {"head.weight": (2, 2), "head.bias": (2,)} if pooled else {}
    shapes |= {f"{norm}.weight": (2,), f"{norm}.bias": (2,)}
    return shapes if pooled else shapes | {"head.weight": (2, 2), "head.bias": (2,)}


def depth_of(depth: int, name: str) -> int:
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else depth + 1


def test_in_pre_training_tokens_are_decayed_and_biases_and_norms_are_not() -> None:
    module = Bag(
        {
            "cls_token": (1, 1, 4),
            "mask_token": (1, 1, 4),
            "norm.weight": (4,),
            "fc.weight": (4, 4),
            "fc.bias": (4,),
        }
    )
    plain, decayed = pretrain_groups(module, 0.05)
    assert [name for name, _ in plain["params"]] == ["norm.weight", "fc.bias"]
    assert [name for name, _ in decayed["params"]] == ["cls_token", "mask_token", "fc.weight"]
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)


def test_what_is_frozen_is_in_no_group() -> None:
    module = Bag({"teacher.weight": (4, 4), "table": (4, 4), "fc.weight": (4, 4), "teachers.weight": (4, 4)})
    module.table.requires_grad_(False)
    module.frozen = lambda: {"teacher"}  # type: ignore[method-assign, assignment]
    (decayed,) = pretrain_groups(module, 0.05)
    assert [name for name, _ in decayed["params"]] == ["fc.weight", "teachers.weight"]


def test_the_rate_of_a_group_is_scaled_last() -> None:
    module = Bag(vit_names(2, pooled=True))
    optimiser = adamw(layer_decay_groups(module, 0.05, 0.5, lambda name: depth_of(2, name), 3))
    set_lr(optimiser, 0.8)
    rates = {name: group["lr"] for group in optimiser.param_groups for name in group["param_names"]}
    assert rates["pos_embed"] == pytest.approx(0.1)
    assert rates["blocks.1.mlp.fc1.bias"] == pytest.approx(0.4)
    assert rates["head.weight"] == 0.8


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden cases are not beside this checkout")
@pytest.mark.parametrize(
    ("case", "depth", "decay", "pooled"),
    [
        ("B_065_gap", 12, 0.65, True),
        ("B_075_cls", 12, 0.75, False),
        ("L_075_gap", 24, 0.75, True),
        ("H_075_gap", 32, 0.75, True),
    ],
)
def test_the_published_groups_of_fine_tuning_come_out(
    case: str, depth: int, decay: float, pooled: bool
) -> None:
    with np.load(GOLDEN) as wanted:
        shapes = vit_names(depth, pooled)
        groups = layer_decay_groups(Bag(shapes), 0.05, decay, lambda name: depth_of(depth, name), depth + 1)
        assert len(groups) == 2 * (depth + 2)
        scales = np.array([group["lr_scale"] for group in groups])
        assert np.array_equal(np.sort(scales), np.sort(wanted[f"{case}_group_scale"]))
        if f"{case}_names" in wanted:
            homes = dict(zip(wanted[f"{case}_names"].tolist(), wanted[f"{case}_group"].tolist(), strict=True))
            for group in groups:
                for name, _ in group["params"]:
                    assert group["lr_scale"] == wanted[f"{case}_group_scale"][homes[name]]
                    assert group["weight_decay"] == wanted[f"{case}_group_wd"][homes[name]]


@pytest.mark.parametrize("clip", [None, 0.01])
def test_a_cancelled_update_leaves_weights_moments_and_counts_as_they_were(clip: float | None) -> None:
    module = nn.Linear(5, 3)
    optimiser = adamw(pretrain_groups(module, 0.05))
    set_lr(optimiser, 0.1)

    def step(value: float, finite: torch.Tensor) -> None:
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, value)
        norm = torch.linalg.vector_norm(gradient_norms(module.parameters()))
        update(optimiser, norm, finite, clip)

    step(1.0, TRUE)
    before = [
        [parameter.clone(), *(v.clone() for v in optimiser.state[parameter].values())]
        for parameter in module.parameters()
    ]
    step(float("nan"), FALSE)
    after = [[parameter, *optimiser.state[parameter].values()] for parameter in module.parameters()]
    assert all(
        torch.equal(a, b)
        for old, new in zip(before, after, strict=True)
        for a, b in zip(old, new, strict=True)
    )
    step(1.0, TRUE)
    assert not torch.equal(before[0][0], module.weight)
    assert float(optimiser.state[module.weight]["step"]) == 2.0


@pytest.mark.parametrize("make", [torch.optim.SGD, adamw], ids=["plain", "fused"])
def test_clipping_scales_the_gradient_to_the_norm_and_never_up(make: type) -> None:
    moved = {}
    for clip, value in ((None, 1.0), (0.5, 1.0), (100.0, 1.0)):
        weight = nn.Parameter(torch.zeros(4))
        optimiser = (
            make([{"params": [weight], "lr": 1.0}])
            if make is torch.optim.SGD
            else adamw([{"params": [weight]}], eps=1.0)
        )
        set_lr(optimiser, 1.0)
        weight.grad = torch.full((4,), value)  # norm 2
        update(optimiser, torch.tensor(2.0), TRUE, clip)
        moved[clip] = weight.detach().clone()
    assert torch.allclose(moved[None], moved[100.0])
    expected = 0.25 if make is torch.optim.SGD else 0.2 * 2  # AdamW with eps 1: g / (g + 1), 0.2 against 0.5
    assert torch.allclose(moved[0.5], moved[None] * expected, rtol=1e-4)


def test_an_optimiser_without_a_fused_kernel_is_cancelled_too() -> None:
    weight = nn.Parameter(torch.zeros(4))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.full((4,), float("inf"))
    update(optimiser, torch.tensor(float("inf")), FALSE, None)
    assert torch.equal(weight, torch.zeros(4))
