"""Attention statistics of a whole Swin V2: timm's blocks with the case's tensors, through the capture of any model."""

import math
import re
from typing import Any

import numpy as np
import torch
from timm.models.swin_transformer_v2 import PatchMerging, SwinTransformerV2Block, WindowAttention
from torch import Tensor, nn

from mimkit.analysis.attention import attention_statistics
from mimkit.analysis.layers import tapping
from mimkit.encoders.base import AttentionSite, Encoder, Features

from ..runner import Case, Outputs


class SwinV2(Encoder):
    """Blocks with windows of their own in each stage; a window larger than the map is padded, as published."""

    def __init__(self, config: dict[str, Any], size: tuple[int, int]) -> None:
        super().__init__()
        patch, width = config["patch_size"], config["embed_dim"]
        self.proj = nn.Conv2d(3, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width)
        self.stride = patch
        grid = (-(-size[0] // patch), -(-size[1] // patch))
        stages, merges = [], []
        for stage, depth in enumerate(config["depths"]):
            window, shifted = config["window_size"][stage], config["use_shift"][stage]
            blocks = [
                SwinTransformerV2Block(
                    width,
                    grid,
                    config["num_heads"][stage],
                    window,
                    window // 2 if shifted and i % 2 else 0,
                    always_partition=True,
                    pretrained_window_size=config["pretrain_window_size"][stage],
                )
                for i in range(depth)
            ]
            stages.append(nn.ModuleList(blocks))
            if stage + 1 < len(config["depths"]):
                merges.append(PatchMerging(width))
                width, grid = 2 * width, (-(-grid[0] // 2), -(-grid[1] // 2))
        self.stages, self.merges = nn.ModuleList(stages), nn.ModuleList(merges)
        for part in self.modules():
            if isinstance(part, nn.LayerNorm):
                part.eps = 1e-6  # as the depth code has it

    def forward(self, images: Tensor, *_: Any, **__: Any) -> Features:
        x = self.norm(self.proj(images).movedim(1, -1))  # (B, h, w, C)
        for stage, blocks in enumerate(self.stages):
            for block in blocks:
                x = block(x)
            x = self.merges[stage](x) if stage < len(self.merges) else x
        return Features((x,))

    def attentions(self) -> Any:
        for stage, blocks in enumerate(self.stages):
            for i, block in enumerate(blocks):
                stride = (self.stride * 2**stage,) * 2
                yield AttentionSite(
                    f"s{stage}b{i}", block.attn, stride, 0, block.window_size, block.shift_size, True
                )


def exact_tables(model: nn.Module, dtype: torch.dtype) -> None:
    """timm makes its tables of log-spaced offsets in single precision; the case has them in its own."""
    for part in model.modules():
        if isinstance(part, WindowAttention):
            sides = zip(part.window_size, part.pretrained_window_size, strict=True)
            axes = [
                8 * torch.arange(1 - now, now, dtype=dtype) / max(trained - 1, 1) for now, trained in sides
            ]
            table = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)[None]  # (1, 2h - 1, 2w - 1, 2)
            part.relative_coords_table = table.sign() * (table.abs() + 1).log2() / math.log2(8)


def published_names(name: str) -> str:
    """Our parameter -> that of the published encoder."""
    name = re.sub(r"^stages\.(\d+)\.(\d+)", r"encoder.layers.\1.blocks.\2", name)
    name = re.sub(r"^merges\.(\d+)", r"encoder.layers.\1.downsample", name)
    return re.sub(r"^(proj|norm)\.", r"encoder.patch_embed.\1.", name).replace("cpb_mlp", "rpe_mlp")


def swin_v2_end_to_end(case: Case, dtype: torch.dtype) -> Outputs:
    image = case.tensor("image", dtype)
    model = SwinV2(case.config["encoder"], (image.shape[2], image.shape[3])).to(dtype).eval()
    weights = case.weights(dtype)
    model.load_state_dict({name: weights[published_names(name)] for name in model.state_dict()})
    exact_tables(model, dtype)
    found = attention_statistics(model, [image])
    got: dict[str, Any] = {}
    for layer in found.layers:
        got |= {f"{layer.name}_distance": layer.distance, f"{layer.name}_entropy": layer.entropy}
        if layer.heads > 1:
            got[f"{layer.name}_kl"] = np.mean(layer.kl_heads)
    names = [f"stages.{i}.{j}" for i, stage in enumerate(model.stages) for j in range(len(stage))]
    with tapping(model, names) as outputs, torch.no_grad():
        model(image)
    return got | {"feature_sum": [float(outputs[name].sum()) for name in names]}


FAMILIES = {"swin_v2_end_to_end": (swin_v2_end_to_end, True)}
