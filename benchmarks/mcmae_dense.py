"""MCMAE's pre-training model as its published code computes it: dense maps, channels first, the mask multiplied in.

The opponent of `mcmae_step`, written as the authors describe it and under the published names: every position of
stages 1 and 2 is computed, hidden or not, norms permute the map back and forth, fusion convolves whole maps, the
decoder answers every unit. Attention runs through torch's fused kernel, so that the race is about the convolutional
front alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV_EPS, EPS, UNIT = 1e-5, 1e-6, 16


class MapNorm(nn.LayerNorm):
    """Over the channels of a map (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)
        self.norm = MapNorm(width, eps=CONV_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.proj(x)))


class ConvMlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class CBlock(nn.Module):
    def __init__(self, width: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = MapNorm(width, eps=CONV_EPS)
        self.conv1 = nn.Conv2d(width, width, 1)
        self.conv2 = nn.Conv2d(width, width, 1)
        self.attn = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm2 = MapNorm(width, eps=CONV_EPS)
        self.mlp = ConvMlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        x = x + self.conv2(self.attn(visible * self.conv1(self.norm1(x))))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, n, width = x.shape
        qkv = self.qkv(x).reshape(batch, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(y.transpose(1, 2).reshape(batch, n, width))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DenseMCMAE(nn.Module):
    """widths, depths, ratios of the three stages; decoder: width, depth, heads."""

    def __init__(
        self,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        ratios: tuple[float, ...],
        heads: int,
        units: int,
        decoder: tuple[int, int, int],
    ) -> None:
        super().__init__()
        width, depth, decoder_heads = decoder
        self.pos_embed = nn.Parameter(torch.zeros(1, units, widths[2]), requires_grad=False)
        self.patch_embed1 = PatchEmbed(3, widths[0], 4)
        self.patch_embed2 = PatchEmbed(widths[0], widths[1], 2)
        self.patch_embed3 = PatchEmbed(widths[1], widths[2], 2)
        self.patch_embed4 = nn.Linear(widths[2], widths[2])
        self.stage1_output_decode = nn.Conv2d(widths[0], widths[2], 4, stride=4)
        self.stage2_output_decode = nn.Conv2d(widths[1], widths[2], 2, stride=2)
        self.blocks1 = nn.ModuleList(CBlock(widths[0], ratios[0]) for _ in range(depths[0]))
        self.blocks2 = nn.ModuleList(CBlock(widths[1], ratios[1]) for _ in range(depths[1]))
        self.blocks3 = nn.ModuleList(Block(widths[2], heads, ratios[2]) for _ in range(depths[2]))
        self.norm = nn.LayerNorm(widths[2], eps=EPS)
        self.decoder_embed = nn.Linear(widths[2], width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, units, width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(width, decoder_heads) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width, eps=EPS)
        self.decoder_pred = nn.Linear(width, UNIT * UNIT * 3)

    def front(self, images: Tensor, hidden: Tensor, stages: int = 2) -> tuple[Tensor, Tensor]:
        """Outputs of stage 1 and 2 (or of stage 1 twice); hidden: bool (B, h, w) of units."""
        visible = (~hidden).to(images.dtype)[:, None]
        x = self.patch_embed1(images)
        for block in self.blocks1:
            x = block(x, visible.repeat_interleave(4, 2).repeat_interleave(4, 3))
        if stages == 1:
            return x, x
        y = self.patch_embed2(x)
        for block in self.blocks2:
            y = block(y, visible.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return x, y

    def latent(self, images: Tensor, hidden: Tensor, keep: Tensor) -> Tensor:
        """(B, K, C): fused and normalised, at the units `keep` (B, K)."""
        one, two = self.front(images, hidden)
        down = [self.stage1_output_decode(one), self.stage2_output_decode(two)]
        x = self.patch_embed4(self.patch_embed3(two).flatten(2).permute(0, 2, 1)) + self.pos_embed
        index = keep[..., None].expand(-1, -1, x.shape[-1])
        x = x.gather(1, index)
        for block in self.blocks3:
            x = block(x)
        for part in down:
            x = x + part.flatten(2).permute(0, 2, 1).gather(1, index)
        return self.norm(x)

    def forward(self, images: Tensor, hidden: Tensor, keep: Tensor) -> Tensor:
        """The loss with targets normalised per patch."""
        known = self.decoder_embed(self.latent(images, hidden, keep))
        gone = hidden.flatten(1)
        x = torch.cat([known, self.mask_token.expand(*gone.shape, -1)[:, keep.shape[1] :].to(known.dtype)], 1)
        order = torch.cat([keep, gone.nonzero()[:, 1].view(len(gone), -1)], dim=1).argsort(dim=1)
        x = x.gather(1, order[..., None].expand(-1, -1, x.shape[-1])) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        predicted = self.decoder_pred(self.decoder_norm(x))
        h, w = hidden.shape[1:]
        target = (
            images.reshape(len(images), 3, h, UNIT, w, UNIT)
            .permute(0, 2, 4, 3, 5, 1)
            .flatten(3)
            .flatten(1, 2)
        )
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        errors = (predicted - target).square().mean(-1)
        return (errors * gone).sum() / gone.sum()
