"""Says in words what a file of weights looks like, so that a wrong one is named and not only refused."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from mimkit.encoders.vit import VARIANTS

HYBRID = r"patch_embed1\.|blocks1\.\d"
SECOND = "ConvMAE-v2, another model than MCMAE (it has a class token)"
# First match wins: a name that occurs in the family's files and in no earlier one's; what it is; one of timm's
SIGNS = (
    (HYBRID, "ConvMAE / MCMAE", None),
    (r"bottom_up\.|simfp_|fpn_lateral|rpn_head|roi_heads", "a detector with a backbone inside", None),
    (r"layers\.\d+\.blocks|cpb_mlp", "a Swin transformer", "swin_base_patch4_window7_224"),
    (
        r"reg_token|register_tokens|storage_tokens",
        "a ViT with register tokens (DINOv2 and later)",
        "vit_base_patch14_reg4_dinov2",
    ),
    (
        r"rel_pos|relative_position|gamma_1",
        "a ViT of the BEiT or SimMIM kind, with relative positions",
        "beit_base_patch16_224",
    ),
    (r"dist_token", "a distilled DeiT", "deit_base_distilled_patch16_224"),
    (r"lkb_origin|large_kernel", "RepLKNet", None),
    (r"dwconv|conv_dw", "a ConvNeXt or another convolutional network", "convnext_base"),
    (r"layer[1-4]\.\d+\.conv", "a ResNet", "resnet50"),
    (r"visual\.|text_model|transformer\.resblocks", "CLIP", "vit_base_patch16_clip_224"),
    (r"lm_head|embed_tokens|\bwte\b", "a language model", None),
    (
        r"blocks\.\d+\.attn\.qkv|attention\.(attention\.query|q_proj)",
        "a ViT with parts that MAE's has not",
        None,
    ),
)


def looks_like(names: Iterable[str]) -> str:
    """What kind of network the names of a file's tensors point to, for a sentence."""
    known = list(names)
    _, what = _sign(known)
    return what or f"no architecture known here (its first tensors are {', '.join(known[:3])})"


def remedy(names: Iterable[str]) -> str:
    """What to do with such a file, for the end of a sentence: how it is opened and how it is fine-tuned, by timm's name
    for what it holds.
    """
    example, _ = _sign(list(names))
    if example is None:
        return "Use weights of a plain ViT, such as MAE's, or of MCMAE"
    config = f'a config.json of {{"architecture": "{example}"}}'
    return (
        "timm computes networks of that kind: give a folder that holds the file as pytorch_model.bin (or "
        f"model.safetensors) beside {config}, or timm:{example} for timm's weights, or fine-tune it with `mimkit "
        f"finetune RECIPE encoder.init=FILE encoder.patch=1 encoder.name=timm:{example}`, each with timm's name for "
        "the one that the file holds"
    )


def _sign(known: list[str]) -> tuple[str | None, str | None]:
    """(timm's own of that kind, what it is)."""
    if "cls_token" in known and any(re.search(HYBRID, name) for name in known):
        return None, SECOND
    for sign, what, example in SIGNS:
        if any(re.search(sign, name) for name in known):
            return example, what
    return None, None


def size_of(tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(width, depth) of the ViT whose encoder these are, under our names; None when it is no whole one."""
    depth = depth_of(tensors)
    kernel = tensors.get("encoder.patch_embed.proj.weight")
    return None if kernel is None or not depth else (kernel.shape[0], depth)


def depth_of(names: Iterable[str], part: str = "encoder") -> int:
    """How many blocks encoder or decoder have, by our names."""
    numbers = [re.match(rf"{part}\.blocks\.(\d+)\.", name) for name in names]
    return 1 + max((int(found[1]) for found in numbers if found), default=-1)


def named(width: int, depth: int) -> str | None:
    """The variant of this size."""
    return next((name for name, row in VARIANTS.items() if (row.width, row.depth) == (width, depth)), None)


def variant(width: int, depth: int) -> str:
    """'1024 wide, 24 deep, as vit_large'."""
    name = named(width, depth)
    return f"{width} wide and {depth} deep" + (f", as {name}" if name else "")
