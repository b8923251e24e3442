"""What a recipe may say about models: the backbone, what is hidden from it, the pre-training method.

A section that takes different fields for different names is a union here: `encoder` of what plain and what hybrid
backbones know, `method` of one model a method. Whatever is common stands in the base class.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _pair(value: object) -> object:
    """Let `224` stand for `[224, 224]`."""
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


# A string among the metadata is how messages word what is allowed.
Side = Annotated[int, Field(ge=1)]
Size = Annotated[
    tuple[Side, Side], BeforeValidator(_pair), "a whole number of at least 1, or two as [height, width]"
]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
AreaShare = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Part(BaseModel):
    """A section of a recipe: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Encoder(Part):
    """The backbone."""

    name: str
    """Backbone by name (`mimkit models` lists them), or `timm:NAME` where features are all that is asked."""
    positions: Literal["sincos", "learned"] = "sincos"
    """Position table: fixed sine-cosine (MAE) or learned."""
    drop_path: Share = 0.0
    """Stochastic depth of the last block; it grows linearly from 0 over the depth. MAE pre-trains without."""
    layer_scale: Annotated[float, Field(gt=0)] | None = None
    """Initial value of a learned scale on each residual branch of the transformer blocks; none in MAE."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more time, far less memory."""
    init: str | None = None
    """Start from these weights: a run folder, a published file, `timm:NAME` or `hf:FOLDER`. None: from scratch."""


class PlainEncoder(Encoder):
    """A plain ViT, or a model of timm's."""

    name: str = "vit_base"
    """Backbone by name (`mimkit models` lists them), or `timm:NAME` where features are all that is asked."""
    patch: Size = (16, 16)
    """Patch height and width in pixels; one number for a square."""
    class_token: bool = True
    """Whether a class token is put in front of the patches."""


class HybridEncoder(Encoder):
    """The convolution-transformer of MCMAE."""

    name: str = "mcmae_base"
    """Backbone by name (`mimkit models` lists them)."""
    kernel: Annotated[int, Field(ge=3)] = 5
    """Side of the depth-wise convolutions, odd (MCMAE, table 5: 3, 5, 7 and 9 are alike within 0.2 points)."""
    masking: Literal["units", "tokens", "leaky"] = "units"
    """How pre-training hides: whole units of 16 pixels (MCMAE), or an ablation of its table 5: `tokens`, a mask on
    4-pixel tokens (1.7 times the arithmetic), `leaky`, convolutions that see what is hidden."""
    layering: Literal["published", "blocks"] = "published"
    """Layers for layer-wise learning rates: the transformer blocks, with all before them in one group, or every
    block."""

    form: Literal["classifier", "detection", "vitdet", "segmentation"] = "classifier"
    """How its transformer blocks attend: everywhere (`classifier`, pre-training too), or as one of the published
    models for dense features: `detection`, windows of 16 units and shared tables of relative positions; `vitdet`,
    padded windows of 14 and decomposed positions; `segmentation`, everywhere, with a table in each block."""
    window: Size | None = None
    """Window height and width in units of 16 pixels. None: that of the form."""
    global_blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Transformer blocks without windows, counted from 0. None: those of the form (0, 3, 6, 10 or 1, 4, 7, 10)."""
    shifted: bool = False
    """Shift the windows of every other block by half their side, as the paper's text has it (with window=7)."""
    padding: Literal["masked", "published"] | None = None
    """Whether padding is kept from influencing anything (`masked`) or takes part, as the published `vitdet` has it.
    None: as the form."""
    table: Size | None = None
    """Grid of the position table where it is not that of data.size; it is resampled when the encoder runs. None: as
    the form (14 x 14 for `vitdet`)."""

    @property
    def patch(self) -> tuple[int, int]:
        """Pixels of a unit; the architecture fixes it."""
        return (16, 16)


def encoder_kind(values: Any) -> str:
    """The discriminator of the section `encoder`."""
    name = values.get("name") if isinstance(values, dict) else getattr(values, "name", None)
    return "hybrid" if isinstance(name, str) and name.startswith("mcmae") else "plain"


class MaskRule(Part):
    """What is hidden from the encoder."""

    kind: Literal["random", "block", "grid"] = "random"
    """Random cells (MAE), blocks (BEiT), or a regular grid that keeps one cell in four (MAE, table 1f)."""
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Share of the cells that is hidden."""
    complementary: bool = False
    """Show every cell of an image once, in 1 / (1 - ratio) masks of one step (FastConvMAE: four at 0.75). A step costs
    as many times more, an image is decoded and cropped once for all of them."""


class Decoder(Part):
    """The light decoder that pre-training throws away."""

    width: Annotated[int, Field(gt=0)] = 512
    """Channels (MAE, table 1b)."""
    depth: Annotated[int, Field(ge=1)] = 8
    """Transformer blocks (MAE, table 1a)."""
    heads: Annotated[int, Field(ge=1)] = 16
    """Attention heads; must divide the width."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Hidden over outer channels of its MLPs."""


class Method(Part):
    """The pre-training task."""

    name: Literal["mae", "mcmae"]
    """Masked autoencoder, or MCMAE, which fuses the levels of a hybrid encoder before it decodes."""
    mask: MaskRule = MaskRule()
    """What is hidden."""
    decoder: Decoder = Decoder()
    """The decoder."""
    norm_pix: bool = True
    """Predict pixels normalised by the mean and deviation of their own patch (better features, MAE table 1d)."""
    decode: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the hidden patches that is decoded and predicted. 0.5 saves a fifth of the arithmetic of ViT-B."""
    min_std: Annotated[float, Field(ge=0)] = 0.0
    """Floor on a patch's deviation when targets are normalised (in units of normalised pixels): keeps near-constant
    patches, as in microscopy or night images, from blowing noise up to full contrast. 0 is the published rule."""


class MAE(Method):
    """Masked autoencoder."""

    name: Literal["mae"] = "mae"
    """Masked autoencoder; `mcmae` fuses the levels of a hybrid encoder before it decodes."""


class MCMAE(Method):
    """MAE on a hybrid encoder, all of whose levels are decoded together."""

    name: Literal["mcmae"] = "mcmae"
    """MCMAE fuses the levels of a hybrid encoder before it decodes; `mae` decodes the last one."""
    multi_scale: bool = True
    """Decode all levels together, or the last one alone (MCMAE, table 6: 0.3 points after 200 epochs)."""
