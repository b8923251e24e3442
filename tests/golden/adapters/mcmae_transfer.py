"""MCMAE's encoder for dense features, the necks on it, and the groups of its fine-tuning.

Weights come from their published names through the zoo. Families: det_backbone_ (both forms), det_pyramid_,
seg_backbone, layer_decay_detection, layer_decay_segmentation.
"""

from typing import Any

import torch
from torch import nn

from mimkit.encoders.mcmae import MCMAEEncoder
from mimkit.encoders.mcmae_forms import build
from mimkit.tasks.necks import Coarser, SimplePyramid
from mimkit.zoo import recognise
from mimkit.zoo.load import load
from mimkit.zoo.mcmae import PUBLISHED
from mimkit.zoo.rules import read
from mimkit.zoo.source import Weights

from ..runner import Case, Outputs, pair


def form_of(case: Case) -> str:
    """Which form the tensors are of."""
    names = " ".join(case.tensors)
    if "rel_pos_h" in names:
        return "vitdet"
    return "detection" if "windowed_rel_pos_bias" in names else "segmentation"


def encoder_of(case: Case) -> MCMAEEncoder:
    """The encoder of a case, as its configuration and, for the pyramid, that of its net say."""
    config = case.config
    if "net" in config:
        config = case.others[config["net"].removeprefix("as ")]["config"]
    depth, ratios = config["depth"], config["mlp_ratio"]
    inside = config.get("window_blocks")
    whole = config.get("global_blocks")
    if inside is not None:
        whole = [i for i in range(depth[2]) if i not in inside]
    options: dict[str, Any] = {
        "conv_eps": config.get("eps_all_blocks", config.get("eps_all")),
        "eps": config.get("eps_all_blocks", config.get("eps_all")),
        "layer_scale": config.get("init_values"),
    }
    table = config.get("pretrain_img_size")
    return build(
        form_of(case),
        config["embed_dim"],
        depth,
        config["num_heads"],
        [ratios] * 3 if isinstance(ratios, int) else ratios,
        3,
        pair(config.get("built_img_size", config["img_size"])),
        window=pair(config["window"]) if "window" in config else None,
        global_blocks=whole,
        table=None if table is None else [side // 16 for side in pair(table)],
        **{name: value for name, value in options.items() if value is not None},
    )


def filled(case: Case, dtype: torch.dtype) -> tuple[MCMAEEncoder, dict[str, torch.Tensor]]:
    """The encoder with its weights, and the weights of the neck."""
    encoder, weights = encoder_of(case).eval(), case.weights(dtype)
    grid = None if "grid" not in case.config else tuple(case.config["grid"])
    load(encoder, Weights(weights, case.name, grid=grid))
    tensors = read(recognise(weights)[0], weights).tensors
    parts = {name: x for name, x in tensors.items() if name.startswith("neck.")}
    return encoder, {name.removeprefix("neck."): x for name, x in parts.items()}


def strictly(module: nn.Module, tensors: dict[str, torch.Tensor]) -> nn.Module:
    counters = {name: x for name, x in module.state_dict().items() if name.endswith("num_batches_tracked")}
    module.load_state_dict(counters | tensors)
    return module.eval()


def sums(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x.sum(), x.abs().sum()])


@torch.no_grad()
def det_backbone(case: Case, dtype: torch.dtype) -> Outputs:
    encoder, _ = filled(case, dtype)
    maps = Coarser(encoder.levels[-1].channels)(encoder(case.tensor("images", dtype)))
    return {
        "s0_slice": maps[0][:, :, ::3, ::3],
        "s0_sums": sums(maps[0]),
        "s1": maps[1][:, :, ::2, ::2],
        "s2": maps[2],
        "s3": maps[3],
        "last_feat": maps[2],
    }


@torch.no_grad()
def det_pyramid(case: Case, dtype: torch.dtype) -> Outputs:
    encoder, tensors = filled(case, dtype)
    neck = strictly(SimplePyramid(encoder.levels[-1].channels, case.config["out_channels"]), tensors)
    maps = neck(encoder(case.tensor("images", dtype)))
    got = {f"p{i}": x for i, x in enumerate(maps, start=2)}
    return got | {"p2": got["p2"][:, :, ::2, ::2]}


@torch.no_grad()
def seg_backbone(case: Case, dtype: torch.dtype) -> Outputs:
    encoder, tensors = filled(case, dtype)
    neck = strictly(Coarser(encoder.levels[-1].channels, "conv"), tensors)
    maps = neck(encoder(case.tensor("images", dtype)))
    return {
        "f0": maps[0][:, :, ::3, ::3],
        "f0_sums": sums(maps[0]),
        "f1": maps[1][:, :, ::2, ::2],
        "f2": maps[2],
        "f3": maps[3],
    }


def depth_of(name: str, layers: int) -> tuple[int, str]:
    """(layer, our name) of a published parameter of a whole detector or segmenter with `layers` blocks."""
    bare = name.removeprefix("backbone.").removeprefix("net.")
    ours = next(iter(read(PUBLISHED, {bare: torch.zeros(1, 1, 1, 1)}).tensors), name)
    encoder = MCMAEEncoder((8, 8, 8), (2, 2, layers), 2, size=(16, 16))
    inner = ours.removeprefix("encoder.")
    return (encoder.depth_of(inner) if inner != ours else layers + 1), ours


def layer_decay_detection(case: Case, dtype: torch.dtype) -> Outputs:
    """The published code leaves the position table out of the layers by mistake; mimkit does not."""
    layers, got = case.config["num_layers"], {}
    for name in case.spec["expected"]:
        layer = layers + 1 if name.endswith("pos_embed") else depth_of(name, layers)[0]
        got[name] = case.config["lr_decay_rate"] ** (layers + 1 - layer)
    return got


def layer_decay_segmentation(case: Case, dtype: torch.dtype) -> Outputs:
    """The published code decays position tables by mistake; mimkit does not. One-dimensional tensors never decay."""
    layers, got = case.config["num_layers"], {}
    flat = ("bias", "norm1.weight", "norm2.weight", "gamma_1", "gamma_2")
    for name in case.spec["expected"]:
        layer, _ = depth_of(name, layers)
        plain = name.endswith(flat)
        got |= {
            f"{name}.layer": layer,
            f"{name}.lr_scale": case.config["layer_decay_rate"] ** (layers + 1 - layer),
            f"{name}.weight_decay": 0.0 if plain else case.config["weight_decay"],
        }
    return got


FAMILIES = {
    "det_backbone_": (det_backbone, True),
    "det_pyramid_": (det_pyramid, True),
    "seg_backbone": (seg_backbone, True),
    "layer_decay_detection": (layer_decay_detection,),
    "layer_decay_segmentation": (layer_decay_segmentation,),
}
