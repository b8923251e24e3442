"""Weights out as a folder of transformers: ViTMAE with the decoder, ViT without, an image processor's file beside it.

The names are those of the hub's files, which transformers 4 and 5 both read. transformers itself is not needed.
"""

from collections.abc import Sequence
from typing import Any

from mimkit.encoders.vit import ViT
from mimkit.zoo.export import Files, Subject, folded, refused
from mimkit.zoo.folders import CONFIG, PROCESSOR
from mimkit.zoo.mae import HUB
from mimkit.zoo.rules import write

BICUBIC = 3  # Pillow's number
FULL_SCALE = {8: 255, 16: 65535}  # by bits; floats are taken as they are


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
    return [*notes, *_processor_notes(subject)]


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
    """What the image processor does before the model: what evaluation here does, as far as it can be said there.

    Of its processors the one of BiT resizes the shorter side, cuts the centre out and normalises; a square needs that.
    """
    (mean, std), size = subject.statistics, _sides(subject.recipe.data.size)
    full, covered = FULL_SCALE.get(subject.bits or 8), None if _stretches(subject) else subject.covered
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": _converts(subject),
        "do_resize": True,
        "size": {"shortest_edge": covered[0]} if covered else size,
        "resample": BICUBIC,
        "do_center_crop": covered is not None,
        "crop_size": size,
        "do_rescale": full is not None,
        "rescale_factor": 1 / (full or 1),
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def _sides(size: Sequence[int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _stretches(subject: Subject) -> bool:
    """Whether the processor brings images to their size without regard to their shape."""
    height, width = subject.recipe.data.size
    return height != width


def _converts(subject: Subject) -> bool:
    """Whether the processor makes RGB of grey images and of palettes, as decoding does here."""
    return subject.encoder.channels == 3 and subject.bits in (None, 8)


def _processor_notes(subject: Subject) -> list[str]:
    """What a user of the image processor has to know: of what it supposes, and of what it cannot do."""
    notes, channels, bits = [], subject.encoder.channels, subject.bits
    if bits == 16:
        notes.append(
            "The image processor divides by 65535, for images of 16 bits as those of the training; of 8 bits set "
            "rescale_factor=1/255. Pillow holds 16 bits of one channel alone: give it arrays."
        )
    if bits == 32:
        notes.append(
            "The image processor takes values as they are stored, floats as those of the training: give it arrays."
        )
    if channels != 3:
        what = "grey images or arrays of one channel" if channels == 1 else f"arrays of {channels} channels"
        notes.append(
            f"The image processor neither adds nor drops channels: give it {what}, with input_data_format."
        )
    if _stretches(subject):
        height, width = subject.recipe.data.size
        notes.append(
            f"The image processor stretches images to {height} x {width}; mimkit keeps their shape and cuts out the "
            "centre."
        )
    return notes
