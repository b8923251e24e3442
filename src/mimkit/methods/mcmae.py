"""MCMAE, also known as ConvMAE (Gao et al. 2022, section 3.2 and 3.3): MAE on a hybrid encoder.

What the method adds to MAE is the fusion of the levels: those of stride 4 and 8 are brought to the last one's grid and
width by convolutions that tile a unit, added to it at the visible units, and normalised (the "multi-scale decoder";
the norm is the published code's). Decoder, targets and loss are MAE's, without a class token. The published decoder
has 16 heads and the MLP ratio of the encoder's first stage.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mimkit.encoders.base import Encoder, Features, Level, pad_to
from mimkit.errors import UserError
from mimkit.masks import Mask, Masker
from mimkit.methods.base import Loss
from mimkit.methods.mae import MAE
from mimkit.ops import units
from mimkit.ops.attention import LAYER_NORM_EPS


def build(encoder: Encoder, **options: Any) -> "MCMAE":
    """The method on `encoder`; see `MCMAE` for the options."""
    return MCMAE(encoder, **options)


class MCMAE(MAE):
    """The pre-training model.

    multi_scale: fuse all levels (table 6), or decode the last one alone. The other options are MAE's.
    """

    def __init__(
        self,
        encoder: Encoder,
        masker: Masker,
        size: Sequence[int] = (224, 224),
        multi_scale: bool = True,
        eps: float = LAYER_NORM_EPS,
        **options: Any,
    ) -> None:
        super().__init__(encoder, masker, size, eps=eps, class_row=False, **options)
        if len(encoder.levels) < 2:
            raise UserError(
                "MCMAE fuses features of several strides, and this encoder has one; use one of mcmae_small .. "
                "mcmae_huge, or method.name=mae."
            )
        self.fusion = Fusion(encoder.levels, multi_scale, eps)

    def encode(self, images: Tensor, mask: Mask) -> tuple[None, Tensor]:
        """The fused visible units, (B, K, C)."""
        return None, self.fusion(self.encoder(images, mask))

    def forward(self, batch: Any) -> Loss:
        """MAE's loss; where the mask lies on finer tokens than the decoder's (table 5, row 2), each unit counts by its
        hidden share.
        """
        if batch.mask.unit == self.patch:
            return super().forward(batch)
        images = self.whole(batch.images)
        share = units.cut(batch.mask.hidden[..., None], self._tokens(batch.mask)).flatten(2).float().mean(2)
        errors = self.errors(self.predict_all(images, batch.mask), images)  # (B, N)
        return Loss((errors * share).sum() / share.sum(), {})

    def whole(self, images: Tensor) -> Tensor:
        """Padded with zeros to whole units, as the encoder does; the padding in a unit is predicted with it."""
        return pad_to(images, self.patch)

    def predict_all(self, images: Tensor, mask: Mask) -> Tensor:
        if mask.unit == self.patch:
            return super().predict_all(images, mask)
        _, tokens = self.encode(images, mask)  # (B, N, C)
        every = torch.arange(tokens.shape[1], device=images.device).expand(len(images), -1)
        grid = [n // s for n, s in zip(mask.grid, self._tokens(mask), strict=True)]
        return self.decoder(None, tokens, every, every[:, :0], grid, answer_visible=True)

    def fill(self, images: Tensor, mask: Mask) -> Tensor:
        if mask.unit == self.patch:
            return super().fill(images, mask)
        return self.predict_all(images, mask).float()

    def _tokens(self, mask: Mask) -> tuple[int, ...]:
        """Cells of the mask along each side of a unit."""
        return tuple(side // cell for side, cell in zip(self.patch, mask.unit, strict=True))


class Fusion(nn.Module):
    """The last level, plus the finer ones brought to its grid and width, normalised (section 3.3)."""

    def __init__(self, levels: Sequence[Level], multi_scale: bool, eps: float = LAYER_NORM_EPS) -> None:
        super().__init__()
        *finer, last = levels
        steps = [last.stride[0] // level.stride[0] for level in finer]
        self.down = nn.ModuleList(
            units.Tiled(level.channels, last.channels, step)
            for level, step in zip(finer, steps, strict=True)
            if multi_scale
        )
        self.norm = nn.LayerNorm(last.channels, eps=eps)

    def forward(self, features: Features) -> Tensor:
        """(B, K, C), or (B, N, C) where nothing was dropped."""
        x = features.levels[-1].flatten(1, -2)
        for conv, level in zip(self.down, features.levels, strict=False):
            x = x + conv(level).flatten(1, -2)
        return self.norm(x)
