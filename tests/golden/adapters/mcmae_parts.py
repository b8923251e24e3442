"""The parts of MCMAE alone: masks on the stage-3 grid, the convolution block, loss, tables, groups, schedules.

Families: mask_blockwise, cblock_, loss, sincos_tables, position_resize, layer_decay_classifier, schedules.
"""

import re
from typing import Any

import numpy as np
import torch

from mimkit import masks
from mimkit.encoders.mcmae import ConvBlock, MCMAEEncoder
from mimkit.engine.optimiser import layer_decay_groups
from mimkit.engine.schedule import learning_rate
from mimkit.masks import Mask, keep_by_noise
from mimkit.methods.mae import patch_errors, patch_targets
from mimkit.ops import units
from mimkit.ops.attention import drop_path_rates
from mimkit.ops.masked_conv import window_rows
from mimkit.ops.positions import resize_table, sincos
from mimkit.tasks.classify import Classifier
from mimkit.zoo.mcmae import PUBLISHED
from mimkit.zoo.rules import read, write

from ..runner import Case, Outputs, ranks
from .mae_parts import count_of

UNIT = (16, 16)


def mask_blockwise(case: Case, dtype: torch.dtype) -> Outputs:
    grid, noise = tuple(case.config["grid"]), case.input("noise")
    got: dict[str, Any] = {"ids_restore": ranks(noise)}
    for ratio in case.config["ratios"]:
        digits = re.sub(r"\D", "", f"{float(ratio):.2f}".rstrip("0").ljust(3, "0"))
        order = keep_by_noise(noise, masks.kept(noise.shape[1], ratio))
        shown = torch.zeros(noise.shape, dtype=torch.bool).scatter(1, torch.from_numpy(order), True)
        cells = ~shown.unflatten(1, grid)
        got |= {f"ids_keep_{digits}": order, f"mask_{digits}": cells.flatten(1)}
        mask = Mask(cells, UNIT, masks.indices(~cells))
        got |= {f"mask_stage{i}_{digits}": mask.at((4 * i, 4 * i)) for i in (1, 2)}
    for name in case.output_names(r"kept_count\.(\d+)\.([\d.]+)"):
        got[name[0]] = count_of(int(name[1]), float(name[2])) if float(name[2]) else int(name[1])
    return got


def cblock(case: Case, dtype: torch.dtype) -> Outputs:
    config = case.config
    block = ConvBlock(config["dim"], config["mlp_ratio"], config["kernel"], 0.0, config["eps"])
    named = {f"blocks1.0.{name}": x for name, x in case.weights(dtype).items()}
    ours = read(PUBLISHED, named).tensors
    block.load_state_dict({name.removeprefix("encoder.blocks1.0."): x for name, x in ours.items()})
    x, cells = case.tensor("x", dtype), torch.from_numpy(case.input("grid_uniform") < 0.5)
    visible = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    maps = x.movedim(1, -1)[:, None]  # (N, 1, h, w, C)
    seen = visible[:, None, ..., None]
    dense = block(maps, seen)[:, 0].movedim(-1, 1)
    check_packed(block, maps, cells, dense)
    mixed = maps + block.conv2(depthwise_of(block, maps, seen))
    shown = visible[:, None]
    return {
        "visible": visible,
        "projected": block.conv1(block.norm1(maps))[:, 0].movedim(-1, 1),
        "mixed_visible": mixed[:, 0].movedim(-1, 1) * shown,
        "out_visible": dense * shown,
        "out_dense": dense,
        "out_unmasked": block(maps)[:, 0].movedim(-1, 1),
    }


def depthwise_of(block: ConvBlock, maps: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    z = (block.conv1(block.norm1(maps)) * seen)[:, 0].movedim(-1, 1)
    return block.attn(z).movedim(1, -1)[:, None]


def check_packed(block: ConvBlock, maps: torch.Tensor, cells: torch.Tensor, dense: torch.Tensor) -> None:
    """The visible units of each image alone (these images show different numbers of units) give the same numbers."""
    for i, shown in enumerate(cells):
        index = masks.indices(shown[None])
        packed = units.take(units.cut(maps[i : i + 1, 0], (4, 4)), index)
        windows = window_rows(index, shown.shape, (4, 4), block.attn.kernel_size)
        want = units.take(units.cut(dense[i : i + 1].movedim(1, -1), (4, 4)), index)
        torch.testing.assert_close(block(packed, None, windows), want)


def loss(case: Case, dtype: torch.dtype) -> Outputs:
    images, predicted = case.tensor("images", dtype), case.tensor("pred", dtype)
    removed = torch.from_numpy(case.input("mask")).bool()
    patches = units.patchify(images, UNIT)
    got = {"patch_slice": patches[:, :, :: patches.shape[2] // case.want["patch_slice"].shape[2]]}
    wanted = {"norm": patch_targets(patches)[0], "raw": patches}
    wanted["norm_constant_image"] = patch_targets(torch.ones_like(patches))[0]
    return got | {f"loss_{kind}": patch_errors(predicted, x)[removed].mean() for kind, x in wanted.items()}


def sincos_tables(case: Case, dtype: torch.dtype) -> Outputs:
    got: dict[str, Any] = {}
    for name in case.output_names(r"t(\d+)(?:x(\d+))?_d(\d+)_?(rows|sums)?"):
        height, width = int(name[1]), int(name[2] or name[1])
        table = sincos(int(name[3]), (height, width))[0]
        if name[4] == "sums":
            table = torch.stack([table.sum(), table.abs().sum()])
        elif name[4] == "rows":
            table = table[:: int(re.search(r"every (\d+)", case.said(name[0]))[1])]
        got[name[0]] = table.to(dtype)
    return got


def position_resize(case: Case, dtype: torch.dtype) -> Outputs:
    table, source = case.tensor("table", dtype), case.config["source"]
    names = case.output_names(r"to_(\d+)x(\d+)")
    return {name[0]: resize_table(table, source, (int(name[1]), int(name[2]))) for name in names}


def layer_decay_classifier(case: Case, dtype: torch.dtype) -> Outputs:
    """Groups in the published order; inside a group ours may name the parameters in another one."""
    config = case.config
    encoder = MCMAEEncoder((8, 8, 8), config["depth"], 2, size=(32, 32))
    model = Classifier(encoder, ["a", "b"])
    groups = layer_decay_groups(
        model, config["weight_decay"], config["layer_decay"], model.depth_of, model.layers
    )
    got: dict[str, Any] = {}
    for i, group in enumerate(groups):
        names = set(write(PUBLISHED, dict(group["params"])))
        wanted = case.want.get(f"{i}.params", np.array([])).tolist()
        same = names == set(wanted)
        got |= {f"{i}.lr_scale": group["lr_scale"], f"{i}.weight_decay": group["weight_decay"]}
        got[f"{i}.params"] = np.array(wanted if same else sorted(names))
    return got


def schedules(case: Case, dtype: torch.dtype) -> Outputs:
    got: dict[str, Any] = {}
    for name in case.output_names(r"(\w+)\.at\.([\d.]+)"):
        c = case.spec["expected"][name[1]]
        rate = learning_rate(float(name[2]), c["lr"], c["min_lr"], c["warmup"], c["epochs"])
        got[name[0]] = rate
        got |= {f"{name[1]}.{key}": c[key] for key in ("lr", "min_lr", "warmup", "epochs")}
    for name in case.output_names(r"drop_path_0(\d)_depth_([\d_]+)"):
        got[name[0]] = drop_path_rates(int(name[1]) / 10, sum(int(n) for n in name[2].split("_")))
    return got


FAMILIES = {
    "mask_blockwise": (mask_blockwise,),
    "cblock_": (cblock, True),
    "loss": (loss, True),
    "sincos_tables": (sincos_tables, True),
    "position_resize": (position_resize, True),
    "layer_decay_classifier": (layer_decay_classifier,),
    "schedules": (schedules,),
}
