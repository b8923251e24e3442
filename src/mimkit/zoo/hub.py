"""Weights out as a folder of transformers: ViTMAE with the decoder, ViT without, an image processor's file beside it.

The names are those of the hub's files, which transformers 4 and 5 both read. transformers itself is not needed.
"""

from typing import Any

from mimkit.encoders.vit import ViT
from mimkit.zoo.export import Files, Subject, folded, refused
from mimkit.zoo.folders import CONFIG, PROCESSOR
from mimkit.zoo.mae import HUB
from mimkit.zoo.rules import write

BICUBIC = 3  # Pillow's number


def to_hub(subject: Subject) -> Files:
    """transformers' names, a config.json for ViTMAE with a decoder, for ViT without, and the image processor's file.

    Raises UserError for what these architectures do not have.
    """
    encoder = subject.encoder
    if not isinstance(encoder, ViT):
        raise refused(
            "transformers",
            [f"it has no architecture for {subject.recipe.encoder.name}"],
            *(("timm",) if subject.foreign else ()),
            "safetensors",
            "onnx",
        )
    reasons = [*_not_in_vit(encoder, subject), *(_not_in_vit_mae(subject) if subject.has("decoder") else ())]
    if reasons:
        raise refused("transformers", reasons, "timm", "safetensors", "onnx")
    if subject.has("decoder"):
        kind, family, config = "ViTMAEForPreTraining", HUB[0], _mae_config(subject)
    elif subject.has("head"):
        kind, family, config = "ViTForImageClassification", HUB[0], _labels(subject.classes)
    else:
        kind, family, config = "ViTModel", HUB[1], {}
    config = {"architectures": [kind], "model_type": "vit", **_vit_config(encoder, subject), **config}
    extra = ", add_pooling_layer=False" if kind == "ViTModel" else ""
    use = (
        f"from transformers import AutoImageProcessor, {kind}\n\n"
        f'processor = AutoImageProcessor.from_pretrained("FOLDER")\n'
        f'model = {kind}.from_pretrained("FOLDER"{extra})'
    )
    configs = {CONFIG: config, PROCESSOR: _processor(subject)}
    return Files(write(family, folded(subject)), configs, use, "transformers", tuple(_hub_notes(subject)))


def _not_in_vit(encoder: ViT, subject: Subject) -> list[str]:
    """What of the encoder transformers' ViT has no place for."""
    reasons = []
    if encoder.cls_token is None:
        reasons.append("its ViT always has a class token, this encoder has none")
    if any("ls1." in name for name in subject.tensors):
        reasons.append("its ViT has no layer scale")
    if encoder.unit[0] != encoder.unit[1]:
        reasons.append(f"its ViT wants square patches, these are {encoder.unit[0]} x {encoder.unit[1]}")
    if subject.has("head") and subject.pooling == "mean":
        reasons.append("its classifier reads the class token, this one the mean of the patches")
    return reasons


def _not_in_vit_mae(subject: Subject) -> list[str]:
    height, width = subject.recipe.data.size
    if height == width:
        return []
    return [
        f"its ViTMAE wants square images, these are {height} x {width} (--no-decoder gives a ViT, which can)"
    ]


def _hub_notes(subject: Subject) -> list[str]:
    notes, (height, width) = [], subject.recipe.data.size
    if height != width:
        notes.append(
            f"transformers takes images of {height} x {width} alone: its interpolation of positions supposes squares."
        )
    if subject.has("decoder") and subject.recipe.pretraining.mask.kind != "random":
        notes.append("transformers hides random patches; this model was trained with another kind of mask.")
    if subject.has("decoder") and subject.recipe.pretraining.min_std:
        notes.append(
            "transformers normalises targets without the floor `method.min_std`, so its loss differs."
        )
    return notes


def _vit_config(encoder: ViT, subject: Subject) -> dict[str, Any]:
    block: Any = encoder.blocks[0]
    height, width = subject.recipe.data.size
    return {
        "hidden_size": encoder.token_width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": block.attn.heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": block.norm1.eps,
        "image_size": height if height == width else [height, width],
        "patch_size": encoder.unit[0],
        "num_channels": encoder.channels,
        "qkv_bias": True,
    }


def _mae_config(subject: Subject) -> dict[str, Any]:
    method = subject.recipe.pretraining
    return {
        "model_type": "vit_mae",
        "decoder_hidden_size": method.decoder.width,
        "decoder_num_hidden_layers": method.decoder.depth,
        "decoder_num_attention_heads": method.decoder.heads,
        "decoder_intermediate_size": subject.tensors["decoder.blocks.0.mlp.fc1.bias"].shape[0],
        "mask_ratio": method.mask.ratio,
        "norm_pix_loss": method.norm_pix,
    }


def _labels(classes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
    }


def _processor(subject: Subject) -> dict[str, Any]:
    (mean, std), (height, width) = subject.statistics, subject.recipe.data.size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
