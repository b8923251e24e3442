"""The encoders of mimkit as models of timm (Wightman 2019): what `import mimkit.timm` registers.

The computation stays ours; the class here has timm's methods, so that whatever builds on timm builds on it:
`forward_features`, `forward_intermediates`, `features_only`, `reset_classifier`, parameter groups. Weights come through
`checkpoint_path=` in any format that mimkit reads: an export, a checkpoint of a run, a published file, a timm file.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch import Tensor, nn

from mimkit.encoders import build
from mimkit.encoders.vit import VARIANTS
from mimkit.errors import UserError
from mimkit.ops.attention import LAYER_NORM_EPS
from mimkit.zoo.load import load
from mimkit.zoo.weights import Weights

log = logging.getLogger(__name__)

NAMES = {f"mimkit_{name}_patch{row.patch}": name for name, row in VARIANTS.items()}
POOLINGS = {"avg": "mean", "token": "cls"}
CONFIG = {
    "url": "",
    "num_classes": 0,
    "input_size": (3, 224, 224),
    "fixed_input_size": False,  # position tables adapt to any size
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "encoder.patch_embed.proj",
    "classifier": "head",
}


class Loaded(NamedTuple):
    """What `load_state_dict` returns; nothing is ever missing or unexpected without a reason, which is logged."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class TimmViT(nn.Module):
    """An encoder of mimkit behind timm's methods.

    Without classes the output is pooled features (B, C) of normalised tokens; with classes and "avg" the norm stands
    behind the pooling, as MAE fine-tunes (appendix A.1). global_pool: "avg", "token", or "" for all tokens.
    """

    def __init__(
        self,
        name: str,
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] | None = None,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: str = "avg",
        class_token: bool = True,
        init_values: float | None = None,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        positions: str = "sincos",
    ) -> None:
        super().__init__()
        if global_pool not in ("", *POOLINGS):
            raise UserError(f"Unknown global_pool {global_pool!r}; known are 'avg', 'token' and ''.")
        size, patch = _pair(img_size), None if patch_size is None else _pair(patch_size)
        self.encoder = build(
            name,
            channels=in_chans,
            size=size,
            patch=patch,
            positions=positions,
            class_token=class_token,
            layer_scale=init_values,
            drop_path=drop_path_rate,
        )
        width = self.encoder.levels[-1].channels
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = width
        self.num_prefix_tokens = int(class_token)
        behind = bool(num_classes) and global_pool == "avg" and self.encoder.drop_norm()
        self.fc_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS) if behind else nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        stride = max(self.encoder.levels[-1].stride)
        self.feature_info = [
            {"module": f"encoder.blocks.{i}", "num_chs": width, "reduction": stride}
            for i in range(self.encoder.depth)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> (B, classes), or (B, C) without classes."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images -> tokens (B, prefix + N, C), class token first."""
        features = self.encoder(x)
        tokens = features.levels[-1].flatten(1, -2)
        return tokens if features.prefix is None else torch.cat([features.prefix, tokens], dim=1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, prefix + N, C) -> pooled, normed, classified."""
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x[:, self.num_prefix_tokens :].mean(1)
        x = self.head_drop(self.fc_norm(x))
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Outputs of the blocks `indices` (from 0; an int: the last so many), (B, C, h, w), or (B, N, C) as "NLC".

        norm: behind the last norm, all of them. stop_early is taken for timm's sake; all blocks are computed.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"Unknown output_fmt {output_fmt!r}; known are 'NCHW' and 'NLC'.")
        taken, _ = feature_take_indices(self.encoder.depth, indices)
        features = self.encoder(x, layers=[i + 1 for i in taken])
        last_norm: Any = self.encoder.norm if norm else nn.Identity()
        made = []
        for i in taken:
            inner = features.layers[i + 1]
            level = last_norm(inner.levels[-1])  # (B, h, w, C)
            level = level.movedim(-1, 1).contiguous() if output_fmt == "NCHW" else level.flatten(1, -2)
            prefix = inner.prefix
            made.append((level, last_norm(prefix)) if return_prefix_tokens and prefix is not None else level)
        if intermediates_only:
            return made
        tokens = features.levels[-1].flatten(1, -2)
        whole = tokens if features.prefix is None else torch.cat([features.prefix, tokens], dim=1)
        return whole, made

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Weights by the names of this module, or in any format that mimkit reads.

        Of the latter what this model lacks is set aside, what the file lacks keeps its start, each with its reason in
        the log; positions and patches are fitted. Raises DataError for what has no reason.
        """
        if not strict or set(state_dict) == set(self.state_dict()):
            return super().load_state_dict(state_dict, strict, assign)
        report = load(self, Weights(state_dict, "the checkpoint"))
        log.info("%s", report)
        return Loaded([], [])

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head; 0 classes: none."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass."""
        encoder: Any = self.encoder
        encoder.checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {"encoder.pos_embed", "encoder.cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter names by layer, for timm's layer-wise learning rates."""
        return {
            "stem": r"^encoder\.(?:cls_token|pos_embed|patch_embed)",
            "blocks": [(r"^encoder\.blocks\.(\d+)", None), (r"^encoder\.norm|^fc_norm", (99999,))],
        }


class Maps(FeatureGetterNet):
    """`features_only=True`: a list of maps (B, C, h, w) behind the last norm; weights load as into the model itself."""

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        if not strict or set(state_dict) == set(self.state_dict()):
            return super().load_state_dict(state_dict, strict, assign)
        return self.model.load_state_dict(state_dict, strict, assign)


def register(module: str) -> list[str]:
    """Register every encoder as `mimkit_NAME_patchN` on behalf of `module`, once; returns the names."""
    for name in NAMES:
        if not timm.is_model(name):
            register_model(_entrypoint(name, module))
    return list(NAMES)


def default_configs() -> dict[str, Any]:
    """What timm calls `default_cfgs`: how images are prepared, which layers come first and last."""
    return generate_default_cfgs(dict.fromkeys(NAMES, CONFIG))


def _entrypoint(name: str, module: str) -> Callable[..., Any]:
    """The function that timm calls for `name`; all options of `TimmViT`, and timm's own."""

    def create(pretrained: bool = False, **options: Any) -> Any:
        return build_model_with_cfg(
            TimmViT,
            name,
            pretrained,
            feature_cfg={"out_indices": 1, "feature_cls": Maps, "norm": True},
            **{"name": NAMES[name], **options},
        )

    create.__name__ = create.__qualname__ = name
    create.__module__ = module
    create.__doc__ = f"{NAMES[name]} of mimkit; see `mimkit.zoo.timm_registry.TimmViT` for the options."
    return create


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
