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
from mimkit.masks import Mask, Masker, indices
from mimkit.methods.base import Loss, Method, Reconstruction
from mimkit.ops import positions, units
from mimkit.ops.attention import LAYER_NORM_EPS, Block

VARIANCE_EPS = 1e-6  # inside the root of the normalised target, as published


class MAE(Method):
    """The pre-training model.

    masker: what is hidden; its unit must be the encoder's. size: (h, w) in pixels of the usual image (sets the
    decoder's position table). norm_pix, min_std: see `patch_targets`. decoder_*: width, depth, heads (table 1a,
    1b).
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
    ) -> None:
        super().__init__()
        if "drop" not in encoder.hides_by:
            raise UserError(
                "MAE needs an encoder that can leave hidden patches out, such as vit_base; this one cannot."
            )
        self.encoder, self.masker = encoder, masker
        self.norm_pix, self.min_std = norm_pix, min_std
        grid = [side // cell for side, cell in zip(size, encoder.unit, strict=True)]
        values = math.prod(encoder.unit) * encoder.channels
        self.decoder = Decoder(
            encoder.levels[-1].channels,
            decoder_width,
            decoder_depth,
            decoder_heads,
            grid,
            values,
            mlp_ratio,
            eps,
        )

    def forward(self, batch: Any) -> Loss:
        """Mean squared error over the patches to predict, all images together (section 3, "Reconstruction target")."""
        images, mask = batch.images, batch.mask
        if mask.decoded.shape[1] == 0:
            raise UserError("A mask that hides nothing leaves nothing to predict; raise the mask ratio.")
        predicted = self.predict(images, mask)  # (B, P, ph * pw * C)
        target = units.patchify(images, self.encoder.unit, mask.decoded)
        if self.norm_pix:
            target, _, _ = patch_targets(target, self.min_std)
        loss = patch_errors(predicted, target).mean()
        return Loss(loss, {})

    def predict(self, images: Tensor, mask: Mask) -> Tensor:
        """(B, P, ph * pw * C): the decoder's answer for the patches `mask.decoded`, in that order."""
        features = self.encoder(images, mask)
        return self.decoder(
            features.prefix, features.levels[-1].flatten(1, -2), mask.visible, mask.decoded, mask.grid
        )

    def predict_all(self, images: Tensor, mask: Mask) -> Tensor:
        """(B, N, ph * pw * C) in raster order: the answer for visible patches too, as the published code gives it."""
        features = self.encoder(images, mask)
        visible = features.levels[-1].flatten(1, -2)
        hidden = indices(mask.hidden)
        both = self.decoder(features.prefix, visible, mask.visible, hidden, mask.grid, answer_visible=True)
        order = torch.cat([mask.visible, hidden], dim=1).argsort(dim=1)
        return units.take(both, order)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, mask: Mask) -> Reconstruction:
        """All hidden patches filled in, whatever share of them training decodes; see `Reconstruction` for the two ways
        with normalised targets.
        """
        mask = replace(mask, predict=None)
        unit, n = self.encoder.unit, math.prod(mask.grid)
        patches = units.patchify(images, unit)  # (B, N, ph * pw * C)
        cells = mask.hidden.flatten(1)[..., None]
        predicted = self.predict(images, mask).float()  # (B, P, ...)
        filled = units.put(predicted, mask.decoded, n)
        leaked = None
        if self.norm_pix:
            _, mean, std = patch_targets(patches, self.min_std)
            leaked = units.unpatchify(torch.where(cells, filled * std + mean, patches), mask.grid, unit)
            mean, std = _guess_statistics(mean, std, mask)
            filled = filled * std + mean
        pasted = units.unpatchify(torch.where(cells, filled, patches), mask.grid, unit)
        hidden = mask.at((1, 1))[:, None]
        return Reconstruction(images, hidden, pasted, leaked)


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
    ) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        # The published table has a row of zeros for the class token, kept so that the files match
        table = positions.sincos(width, grid, class_row=True).to(torch.get_default_dtype())
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, eps=eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.pred = nn.Linear(width, values)
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
        rows = positions.resize_table(self.pos_embed, self.grid, grid, prefix=1)[0]  # (1 + N, width)
        known = self.embed(visible) + rows[1:][visible_index]
        asked = self.mask_token + rows[1:][predict_index]
        parts = [known, asked.to(known.dtype)]
        if prefix is not None:
            parts.insert(0, self.embed(prefix) + rows[:1])
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


def _guess_statistics(mean: Tensor, std: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """Mean and deviation (B, N, 1) of hidden patches guessed from visible ones, weighted by 1 / distance squared.

    What a picture of normalised predictions can honestly use: nothing hidden goes in.
    """
    height, width = mask.grid
    cells = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(mean)  # (N, 2)
    away = (cells[None, :, None] - cells[mask.visible][:, None]).square().sum(-1)  # (B, N, K)
    weights = 1 / away.clamp_min(1e-6)
    weights = weights / weights.sum(-1, keepdim=True)
    return weights @ units.take(mean, mask.visible), weights @ units.take(std, mask.visible)
