"""Masked autoencoders (He et al. 2022).

Section 3: the encoder sees the visible patches alone; a light decoder gets them, one learned mask token for every
hidden patch, and positions, and regresses the pixels of the hidden patches; the loss is the mean squared error over
those. Attention does not mind the order of its tokens, so nothing is unshuffled here: the decoder's sequence is the
class token, the visible patches, then the patches to predict, each with its own position row. Only the last of
these are needed behind the last block, so its queries, MLP, norm and prediction run on them alone. The numbers are
those of the published code.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mimkit.encoders.base import Encoder
from mimkit.encoders.vit import xavier_linears
from mimkit.errors import UserError
from mimkit.masks import Mask, Masker
from mimkit.methods.base import Loss, Method, Reconstruction
from mimkit.ops import positions, units
from mimkit.ops.attention import LAYER_NORM_EPS, Block
from mimkit.ops.linear import Linear

VARIANCE_EPS = 1e-6  # inside the root of the normalised target, as published


def build(encoder: Encoder, **options: Any) -> "MAE":
    """The method on `encoder`; see `MAE` for the options."""
    return MAE(encoder, **options)


class MAE(Method):
    """The pre-training model.

    masker: what is hidden; its unit must be the encoder's. size: (h, w) in pixels of the usual image (sets the
    decoder's position table). norm_pix, min_std: see `patch_targets`. decoder_*: width, depth, heads (table 1a,
    1b). class_row: whether the decoder's table has a row for a class token.
    """

    def __init__(
        self,
        encoder: Encoder,
        masker: Masker,
        size: Sequence[int] = (224, 224),
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_pix: bool = True,
        min_std: float = 0.0,
        eps: float = LAYER_NORM_EPS,
        class_row: bool = True,
    ) -> None:
        super().__init__()
        if "drop" not in encoder.hides_by:
            raise UserError(
                "MAE needs an encoder that can leave hidden patches out, such as vit_base; this one cannot."
            )
        self.encoder, self.masker = encoder, masker
        self.norm_pix, self.min_std = norm_pix, min_std
        self.patch = encoder.levels[-1].stride  # pixels of what one token of the decoder stands for
        grid = [-(-side // cell) for side, cell in zip(size, self.patch, strict=True)]
        values = math.prod(self.patch) * encoder.channels
        self.decoder = Decoder(
            encoder.levels[-1].channels,
            decoder_width,
            decoder_depth,
            decoder_heads,
            grid,
            values,
            mlp_ratio,
            eps,
            class_row,
        )

    def forward(self, batch: Any) -> Loss:
        """Mean squared error over the patches to predict, all images together (section 3, "Reconstruction target")."""
        images, mask = batch.images, batch.mask.spread()
        images = self.whole(images).repeat(len(mask.hidden) // len(images), 1, 1, 1)  # once for each mask
        if mask.decoded.shape[1] == 0:
            raise UserError("A mask that hides nothing leaves nothing to predict; raise the mask ratio.")
        predicted = self.predict(images, mask)  # (B, P, ph * pw * C)
        return Loss(self.errors(predicted, images, mask.decoded).mean(), {})

    def whole(self, images: Tensor) -> Tensor:
        """Images in whole patches; MAE has no others."""
        return images

    def errors(self, predicted: Tensor, images: Tensor, index: Tensor | None = None) -> Tensor:
        """(B, P): the mean squared error of each predicted patch, those at `index` (B, P) or all."""
        target = units.patchify(images, self.patch, index)
        if self.norm_pix:
            target, _, _ = patch_targets(target, self.min_std)
        return patch_errors(predicted, target)

    def encode(self, images: Tensor, mask: Mask) -> tuple[Tensor | None, Tensor]:
        """What the decoder reads: the prefix (B, n, C), and the visible patches (B, K, C)."""
        features = self.encoder(images, mask)
        return features.prefix, features.levels[-1].flatten(1, -2)

    def predict(self, images: Tensor, mask: Mask) -> Tensor:
        """(B, P, ph * pw * C): the decoder's answer for the patches `mask.decoded`, in that order."""
        prefix, visible = self.encode(images, mask)
        return self.decoder(prefix, visible, mask.visible, mask.decoded, mask.grid)

    def predict_all(self, images: Tensor, mask: Mask) -> Tensor:
        """(B, N, ph * pw * C) in raster order: the answer for visible patches too, as the published code gives it."""
        prefix, visible = self.encode(images, mask)
        hidden = replace(mask, predict=None).decoded
        both = self.decoder(prefix, visible, mask.visible, hidden, mask.grid, answer_visible=True)
        order = torch.cat([mask.visible, hidden], dim=1).argsort(dim=1)
        return units.take(both, order)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, mask: Mask) -> Reconstruction:
        """All hidden patches filled in, whatever share of them training decodes; see `Reconstruction` for the two ways
        with normalised targets.
        """
        mask, (height, width) = replace(mask, predict=None), images.shape[2:]
        images = self.whole(images)
        hidden = mask.at((1, 1))[:, None]
        filled = self.fill(images, mask)  # (B, N, ph * pw * C)
        grid = [side // cell for side, cell in zip(images.shape[2:], self.patch, strict=True)]

        def pasted(patches: Tensor) -> Tensor:
            filled = torch.where(hidden, units.unpatchify(patches, grid, self.patch), images)
            return filled[..., :height, :width]

        seen = images[..., :height, :width], hidden[..., :height, :width]
        if not self.norm_pix:
            return Reconstruction(*seen, pasted(filled))
        _, mean, std = patch_targets(units.patchify(images, self.patch), self.min_std)
        leaked = pasted(filled * std + mean)
        mean, std = _guess_statistics(images, mask, self.patch, self.min_std)
        return Reconstruction(*seen, pasted(filled * std + mean), leaked)

    def fill(self, images: Tensor, mask: Mask) -> Tensor:
        """(B, N, ph * pw * C): the answer for every hidden patch at its place, zeros for visible ones."""
        return units.put(self.predict(images, mask).float(), mask.decoded, math.prod(mask.grid))


class Decoder(nn.Module):
    """Linear map, mask tokens, positions, blocks, norm, prediction (section 3, "MAE decoder")."""

    def __init__(
        self,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        grid: Sequence[int],
        values: int,
        mlp_ratio: float = 4.0,
        eps: float = LAYER_NORM_EPS,
        class_row: bool = True,
    ) -> None:
        super().__init__()
        self.grid, self.prefix_tokens = tuple(grid), int(class_row)
        self.embed = Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        # MAE's published table has a row of zeros for the class token, kept so that the files match
        self.pos_embed = positions.new_table("sincos", width, grid, class_row)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, eps=eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.pred = Linear(width, values)
        xavier_linears(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        prefix: Tensor | None,
        visible: Tensor,
        visible_index: Tensor,
        predict_index: Tensor,
        grid: Sequence[int],
        answer_visible: bool = False,
    ) -> Tensor:
        """(B, P, values) for the cells at predict_index (B, P), from the encoder's prefix (B, n, C) and visible (B,
        K, C).

        answer_visible: (B, K + P, values), with answers for the visible cells in front.
        """
        n = self.prefix_tokens
        rows = positions.resize_table(self.pos_embed, self.grid, grid, n)[0]  # (n + N, width)
        known = self.embed(visible) + rows[n:][visible_index]
        asked = self.mask_token + rows[n:][predict_index]
        parts = [known, asked.to(known.dtype)]
        if prefix is not None:
            parts.insert(0, self.embed(prefix) + rows[:n])
        x = torch.cat(parts, dim=1)  # (B, n + K + P, width)
        wanted = predict_index.shape[1] + (visible_index.shape[1] if answer_visible else 0)
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.blocks[-1](x, last=wanted)  # (B, P, width)
        return self.pred(self.norm(x))


def patch_targets(patches: Tensor, min_std: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Patches (B, N, values) normalised each by its own mean and deviation, and these two (B, N, 1).

    The variance is unbiased and over all channels together, 1e-6 stands inside the root (published rule). min_std: a
    floor on the deviation that keeps the noise of near-constant patches from being blown up to full contrast.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    std = (variance + VARIANCE_EPS).sqrt().clamp_min(min_std)
    return (patches - mean) / std, mean, std


def patch_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each patch, (..., values) -> (...), in float32 or better."""
    precise = target.dtype if target.dtype == torch.float64 else torch.float32
    return (predicted.to(precise) - target).square().mean(-1)


def _guess_statistics(
    images: Tensor, mask: Mask, patch: Sequence[int], min_std: float
) -> tuple[Tensor, Tensor]:
    """Mean and deviation (B, N, 1) of patches guessed from the visible cells, weighted by 1 / distance squared.

    What a picture of normalised predictions can honestly use: nothing hidden goes in.
    """
    _, mean, std = patch_targets(units.patchify(images, mask.unit, mask.visible), min_std)  # (B, K, 1)
    known = _centres(mask.grid, mask.unit).to(mean)[mask.visible]  # (B, K, 2)
    wanted = [side // cell for side, cell in zip(images.shape[2:], patch, strict=True)]
    asked = _centres(wanted, patch).to(mean)  # (N, 2)
    away = (asked[None, :, None] - known[:, None]).square().sum(-1)  # (B, N, K)
    weights = 1 / away.clamp_min(1e-6)
    weights = weights / weights.sum(-1, keepdim=True)
    return weights @ mean, weights @ std


def _centres(grid: Sequence[int], cell: Sequence[int]) -> Tensor:
    """(N, 2) float: where the cells of `grid` lie, in pixels."""
    axes = [(torch.arange(n) + 0.5) * side for n, side in zip(grid, cell, strict=True)]
    return torch.cartesian_prod(*axes)
