"""Weights out, in the formats of others: what each needs besides the tensors, and what it cannot express.

Here are safetensors with our own config.json and timm's state dict and config.json; `zoo.hub` writes for transformers,
`zoo.onnx` the program that ONNX is. All but ONNX is names and numbers: neither timm nor transformers is asked (timm is
where the head of one of its own networks is written, since such heads differ). What an architecture there cannot hold
is refused with the reason, and with the formats that can.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mimkit.encoders.base import Encoder
from mimkit.encoders.vit import VARIANTS, ViT
from mimkit.errors import UserError
from mimkit.recipes.schema import Recipe
from mimkit.version import __version__
from mimkit.zoo import foreign
from mimkit.zoo.folders import CONFIG, OWN_FORMAT, OWN_VERSION
from mimkit.zoo.mae import PUBLISHED
from mimkit.zoo.rules import write

FORMATS = ("safetensors", "timm", "hf", "onnx")
HEAD_TENSORS = ("head.weight", "head.bias")
TIMM_ARCHITECTURES = {  # timm's name for each variant; another patch is an argument there
    name: f"{name}_patch{row.patch}_224" for name, row in VARIANTS.items()
}


@dataclass(frozen=True)
class Subject:
    """What is exported. tensors: by our names (`encoder.`, `decoder.`, `fc_norm.`, `head.`), as far as they go.

    recipe: its sections encoder, method, task and data say how they are computed. classes: of a head, in its order.
    head: pooled features (B, C) to logits; pooling: "mean" or "cls", what it reads. bits: of the images, 8, 16, or 32
    for floats; None where nobody knows. covered: (h, w) in pixels that evaluation resizes an image to before it cuts
    out the centre; None: it is cut as it is.
    """

    tensors: Mapping[str, Tensor]
    encoder: Encoder
    recipe: Recipe
    classes: tuple[str, ...] = ()
    head: nn.Module | None = None
    pooling: str = "mean"
    bits: int | None = None
    covered: tuple[int, int] | None = None

    def has(self, part: str) -> bool:
        """Whether there are tensors of `part`: "decoder", "fc_norm", "head"."""
        return any(name.startswith(f"{part}.") for name in self.tensors)

    @property
    def foreign(self) -> bool:
        """Whether timm computes the encoder."""
        return self.recipe.encoder.name.startswith("timm:")

    @property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of each channel in 0..1."""
        data = self.recipe.data
        assert data.mean is not None and data.std is not None, "the recipe of a model is settled"
        return list(data.mean), list(data.std)


@dataclass(frozen=True)
class Files:
    """What an exported folder holds. configs: file name -> JSON. use: Python that loads it, FOLDER for its path.

    library: as model cards name it. notes: sentences on what the format does not say.
    """

    tensors: Mapping[str, Tensor]
    configs: Mapping[str, Mapping[str, Any]]
    use: str
    library: str
    notes: tuple[str, ...] = field(default=())


def to_safetensors(subject: Subject) -> Files:
    """Our own names and a config.json that `mimkit.load` reads; everything can be expressed."""
    dumped = subject.recipe.model_dump(mode="json")
    data = {key: dumped["data"][key] for key in ("size", "channels", "mean", "std")}
    data |= {} if subject.bits is None else {"bits": subject.bits}
    encoder = {key: value for key, value in dumped["encoder"].items() if key != "init"}
    config = {
        "format": OWN_FORMAT,
        "version": OWN_VERSION,
        "mimkit": __version__,
        "encoder": encoder,
        "method": dumped["method"] if subject.has("decoder") else None,
        "task": dumped["task"] if subject.has("head") else None,
        "data": data,
        "classes": list(subject.classes),
    }
    use = [
        "import mimkit",
        "",
        'model = mimkit.load("FOLDER")',
        "features = model.encoder(images)  # images (B, C, H, W), normalised as below",
        "features.map()  # (B, C, h, w)",
        'features.pooled("mean")  # (B, C)',
        *(
            ['mimkit.predict("FOLDER", "photos/")  # a class and a confidence for each image']
            * bool(subject.classes)
        ),
    ]
    return Files(subject.tensors, {CONFIG: config}, "\n".join(use), "mimkit")


def to_timm(subject: Subject) -> Files:
    """timm's names for the encoder, and for the head where there is one; the decoder has no place there.

    Raises UserError for an encoder that timm does not have.
    """
    architecture, arguments = _timm_model(subject)
    tensors = {name: x for name, x in folded(subject).items() if not name.startswith("decoder.")}
    if subject.foreign:
        published, arguments = _foreign_model(subject, tensors, architecture, arguments)
    else:
        published = write(PUBLISHED, tensors)
    (mean, std), size = subject.statistics, list(subject.recipe.data.size)
    classes = len(subject.classes)
    cfg = {
        "num_classes": classes,
        "input_size": [subject.recipe.data.channels, *size],
        "mean": mean,
        "std": std,
        "interpolation": "bicubic",
        "crop_pct": round(size[0] / subject.covered[0], 3) if subject.covered else 1.0,
        "fixed_input_size": "img_size" in arguments,
    }
    if isinstance(subject.encoder, ViT):
        cfg |= {"first_conv": "patch_embed.proj", "classifier": "head"}
    config = {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": subject.encoder.levels[-1].channels,
        "model_args": arguments,
        "pretrained_cfg": cfg,
    }
    if classes:
        config["label_names"] = list(subject.classes)
    spoken = {key: tuple(x) if isinstance(x, list) else x for key, x in arguments.items()}
    given = "".join(f"    {key}={value!r},\n" for key, value in {**spoken, "num_classes": classes}.items())
    use = (
        "import timm\n\n"
        f'model = timm.create_model(\n    "{architecture}",\n{given}'
        '    checkpoint_path="FOLDER/model.safetensors",\n)\n'
        "# or, with these arguments taken from config.json:\n"
        'model = timm.create_model("local-dir:FOLDER", pretrained=True)'
    )
    return Files(published, {CONFIG: config}, use, "timm")


def _foreign_model(
    subject: Subject, tensors: Mapping[str, Tensor], architecture: str, arguments: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(the tensors of one of timm's models by its own names, the arguments with which it answers as this one does).

    Raises UserError where timm's model with a head answers otherwise: it pools or normalises in another way.
    """
    encoder = {
        name.removeprefix("encoder.model."): x for name, x in tensors.items() if name.startswith("encoder.")
    }
    if subject.head is None:
        return encoder, dict(arguments)
    images = foreign.example(subject.encoder.channels, subject.recipe.data.size)
    with torch.no_grad():
        ours = subject.head(subject.encoder(images).pooled(subject.pooling))
    head = {name.removeprefix("head."): x for name, x in tensors.items() if name in HEAD_TENSORS}
    for more in foreign.POOLINGS[subject.pooling] if len(subject.encoder.heads) == 1 else ():
        whole = foreign.join_head(encoder, head, subject.encoder.heads[0].removeprefix("model."))
        given = {**arguments, **more}
        theirs = foreign.their_logits(architecture, given, whole, len(subject.classes), images)
        if foreign.alike(ours, theirs):
            return whole, given
    raise refused("timm", [f"the head of its {architecture} reads other features"], "safetensors", "onnx")


def _timm_model(subject: Subject) -> tuple[str, dict[str, Any]]:
    """(timm's architecture, the arguments that make it this encoder)."""
    encoder, recipe = subject.encoder, subject.recipe
    arguments: dict[str, Any] = {"in_chans": encoder.channels}
    if subject.foreign:
        model: Any = encoder.model
        if model.pretrained_cfg.get("fixed_input_size"):
            arguments["img_size"] = list(recipe.data.size)
        return recipe.encoder.name.removeprefix("timm:").partition(".")[0], arguments
    if not isinstance(encoder, ViT):
        raise refused("timm", [f"it has no architecture for {recipe.encoder.name}"], "safetensors", "onnx")
    arguments |= {"img_size": list(recipe.data.size), "patch_size": list(encoder.unit)}
    if encoder.cls_token is None:
        arguments["class_token"] = False
    if encoder.cls_token is None or (subject.has("head") and subject.pooling == "mean"):
        arguments |= {"global_pool": "avg", "fc_norm": subject.has("fc_norm")}
    if recipe.encoder.layer_scale is not None:
        arguments["init_values"] = recipe.encoder.layer_scale
    name = recipe.encoder.name
    if name not in VARIANTS:
        block: Any = encoder.blocks[0]
        arguments |= {
            "embed_dim": encoder.token_width,
            "depth": encoder.depth,
            "num_heads": block.attn.heads,
            "mlp_ratio": block.mlp.fc1.out_features / encoder.token_width,
        }
    return TIMM_ARCHITECTURES.get(name, TIMM_ARCHITECTURES["vit_base"]), arguments


def folded(subject: Subject) -> Mapping[str, Tensor]:
    """The tensors, a linear probe's batch norm made part of its linear layer: the same answers, a plain head."""
    norms = (
        [] if subject.head is None else [m for m in subject.head.modules() if isinstance(m, nn.BatchNorm1d)]
    )
    if not norms:
        return subject.tensors
    plain = {name: x for name, x in subject.tensors.items() if not name.startswith("head.")}
    mean, variance = subject.tensors["head.0.running_mean"], subject.tensors["head.0.running_var"]
    weight = subject.tensors["head.1.weight"] / (variance + norms[0].eps).sqrt()  # (classes, C)
    return {**plain, "head.weight": weight, "head.bias": subject.tensors["head.1.bias"] - weight @ mean}


def refused(library: str, reasons: list[str], *offers: str) -> UserError:
    """The sentence for what a format cannot express: why, and what can."""
    *others, last = [f"--to {offer}" for offer in offers]
    return UserError(
        f"{library} cannot express this model: {'; '.join(reasons)}. Use {', '.join(others)} or {last} instead."
    )
