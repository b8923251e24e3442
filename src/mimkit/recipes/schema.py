"""What a recipe may say: the whole of an experiment as one frozen, typed document.

`mimkit recipes show NAME` prints every field with the sentence that stands under it here. The models forbid unknown
keys; `recipes.load` turns what pydantic finds into sentences. Defaults are the published pre-training settings of MAE
(He et al. 2022, table 8) where the paper has a say.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from mimkit.errors import UserError, counted
from mimkit.recipes.model_parts import (
    MAE,
    MCMAE,
    AreaShare,
    Decay,
    HybridEncoder,
    Method,
    Part,
    PlainEncoder,
    Positive,
    Share,
    Size,
    encoder_kind,
)


class Misfit(ValueError):
    """Fields that are fine alone and do not fit together: (the dotted keys concerned, the sentence) for each clash."""

    def __init__(self, clashes: list[tuple[tuple[str, ...], str]]) -> None:
        super().__init__("; ".join(sentence for _, sentence in clashes))
        self.clashes = clashes


class Classify(Part):
    """Image classification: fine-tuning, partial fine-tuning or a linear probe (MAE, appendix A.1 and A.2)."""

    name: Literal["classify"] = "classify"
    """Classes of images."""
    head: Literal["linear", "probe"] = "linear"
    """What is trained: `linear`, encoder and a linear head; `probe`, on the frozen encoder, a batch norm without
    weights and a linear layer."""
    pooling: Literal["mean", "cls"] = "mean"
    """What the head reads: the mean of the patches (MAE's fine-tuning) or the class token (its linear probe)."""
    blocks: Annotated[float, Field(ge=0)] | None = None
    """Train so many of the last blocks alone, with norm and head (MAE, figure 9); 0.5 is the MLP half of the last one.
    None: all of the encoder."""
    smoothing: Decay = 0.1
    """Share of the target that is spread over all classes."""
    mixup: Annotated[float, Field(ge=0)] = 0.8
    """Parameter of the Beta distribution of Mixup, which blends pairs of images; 0 leaves it out."""
    cutmix: Annotated[float, Field(ge=0)] = 1.0
    """Parameter of the Beta distribution of CutMix, which pastes a rectangle of another image; 0 leaves it out."""
    switch: Share = 0.5
    """Probability of CutMix instead of Mixup where both are on."""
    randaugment: str | None = "rand-m9-mstd0.5-inc1"
    """RandAugment in timm's notation: magnitude m, its deviation mstd; n operations, each with probability p. None:
    without, as images of more than 8 bits need it."""
    erasing: Share = 0.25
    """Probability that a rectangle of an image is filled with noise."""
    crop: Literal["resized", "clipped"] = "resized"
    """Rule of the random crop: random resized crop, or that of the published linear probe, which cuts what is too long
    to the image."""
    balance: bool = False
    """Weigh the loss of an image by 1 / images of its class, for classes of very different size."""


class Data(Part):
    """The images."""

    path: str | None = None
    """Folder, glob, .txt list, .csv or .parquet table, tar shards, .npy or .npz stack, or an fsspec address."""
    val: str | None = None
    """Labelled images that a task is measured on, never trained on. None: a share of `path` is held out (val_share)."""
    val_share: Annotated[float, Field(ge=0, le=0.5)] = 0.2
    """Share of each class that is held out where `val` names nothing, the same images for every seed; 0: none."""
    label_share: AreaShare = 1.0
    """Share of the labelled images of each class that a task is trained on, at least one: few-label experiments."""
    shots: Annotated[int, Field(ge=1)] | None = None
    """Labelled images of each class that a task is trained on, instead of a share."""
    size: Size = (224, 224)
    """Height and width of a training crop in pixels; one number for a square."""
    channels: Annotated[int, Field(ge=1)] | None = None
    """Channels of an image. None: as most of the data has (grey is kept grey, RGB is RGB)."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel in 0..1. None: ImageNet's for three channels of 8 bits, else measured on the data."""
    std: tuple[Positive, ...] | None = None
    """Deviation of each channel in 0..1. None: as for the mean."""
    crop_scale: tuple[AreaShare, AreaShare] = (0.2, 1.0)
    """Smallest and largest share of the image's area that a random crop takes."""
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of a random crop."""
    flip: Share = 0.5
    """Probability of a horizontal flip; 0 where left and right differ in meaning."""
    repeats: Annotated[int, Field(ge=1)] = 1
    """Crops taken from each decoded image (repeated augmentation): spares the loader where decoding is the limit."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Loader processes. None: chosen from the cores of this machine."""
    bad_share: Share = 0.1
    """Stop when more than this share of the images cannot be read."""


class Optimiser(Part):
    """How weights are updated, and by how much."""

    name: Literal["adamw", "lars"] = "adamw"
    """AdamW, or LARS for linear probes of very large batches (MAE, appendix A.1)."""
    base_lr: Annotated[float, Field(gt=0)] = 1.5e-4
    """Learning rate for 256 images a step: lr = base_lr x batch_size / 256."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate as it is, instead of base_lr."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of AdamW's two moments."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Term that keeps AdamW's division finite."""
    momentum: Decay = 0.9
    """Momentum of LARS."""
    trust: Annotated[float, Field(gt=0)] = 0.001
    """LARS: the length of a tensor's step, as a share of the tensor's own length."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Decoupled weight decay; biases and one-dimensional tensors have none."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor on the learning rate from each layer to the one before it; for fine-tuning and continued training."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient; None: no clipping (the norm is logged all the same)."""


class Schedule(Part):
    """Warm-up from zero, then half a cosine."""

    warmup_epochs: Annotated[float, Field(ge=0)] = 40
    """Epochs of linear warm-up, starting at exactly 0."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate at the end."""


class Train(Part):
    """The run."""

    epochs: Annotated[int, Field(ge=1)] = 800
    """Passes over the images."""
    batch_size: Annotated[int, Field(ge=1)] = 4096
    """Images of one optimiser step, over all processes and accumulated micro-batches."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Images that go through the model at once. None: the largest that fits; frozen in the run's recipe."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything random."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto`, `cpu`, `cuda` (one GPU a process) or `mps`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the matrix products; auto: bf16 where the hardware has it. Weights stay fp32. Never fp16."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share the work. `ddp`: each holds the whole model; `fsdp`: each holds a share of weights,
    gradients and moments, for models that are too large (docs: Scale). Losses are the same to rounding."""
    compile: bool = False
    """Compile the model with torch.compile: worth it on GPUs."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, kept beside them. None: no average."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 500
    """Steps between checkpoints; the last one is always written."""
    keep: Annotated[int, Field(ge=1)] = 2
    """Checkpoints kept besides the first."""
    rollback_after: Annotated[int, Field(ge=1)] = 5
    """Non-finite steps in a row after which the run goes back to the last good checkpoint at half the rate."""
    run: str | None = None
    """The run folder. None: runs/<recipe>-<time>."""


class Probe(Part):
    """A small labelled set that says how good the frozen features are while training goes on."""

    path: str
    """Labelled images: a folder of class folders, a table with labels, or tar shards."""
    every_epochs: Annotated[int, Field(ge=1)] = 20
    """Epochs between probes; the end is always probed."""
    size: Size | None = None
    """Size at which the images are seen. None: the size of the training crops."""
    max_images: Annotated[int, Field(ge=10)] = 5000
    """At most so many labelled images, drawn evenly over the classes."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Folds of the cross-validation that gives the spread."""


class Log(Part):
    """What is written down."""

    every: Annotated[int, Field(ge=1)] = 10
    """Steps between lines when there is no terminal."""
    samples_every: Annotated[int, Field(ge=1)] = 20
    """Epochs between pictures in samples/ (reconstructions or predictions), and between label-free quality measures."""
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Epochs between evaluations of a task on its held-out images; the end is always evaluated."""
    writers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)
    """Where the metrics go besides metrics.jsonl."""
    channels: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Channels of the images that pictures show as red, green and blue, or one as grey, counted from 0. None: the first
    three."""
    probe: Probe | None = None
    """Probe of the frozen features on labelled images."""


class Recipe(Part):
    """One experiment, whole."""

    name: str = "recipe"
    """The recipe's name; part of the run folder's name."""
    about: str = ""
    """Paper, table, expected time and result, and the command."""
    encoder: Annotated[
        Annotated[PlainEncoder, Tag("plain")] | Annotated[HybridEncoder, Tag("hybrid")],
        Discriminator(encoder_kind),
    ] = PlainEncoder()
    """The backbone."""
    method: Annotated[MAE | MCMAE, Discriminator("name")] | None = None
    """The pre-training task; a recipe has this or `task`. Where it has neither, this with its defaults."""
    task: Classify | None = None
    """The downstream task that an encoder is fine-tuned or probed for."""
    data: Data = Data()
    """The images."""
    optimiser: Optimiser = Optimiser()
    """How weights are updated, and by how much."""
    schedule: Schedule = Schedule()
    """The course of the learning rate."""
    train: Train = Train()
    """The run."""
    log: Log = Log()
    """What is written down."""

    @property
    def pretraining(self) -> Method:
        """The section `method`. Raises UserError where the recipe has a task instead."""
        if self.method is None:
            raise UserError(
                f"The recipe {self.name} is for a task, not for pre-training; train it with `mimkit finetune`."
            )
        return self.method

    @property
    def tuning(self) -> Classify:
        """The section `task`. Raises UserError where the recipe pre-trains instead."""
        if self.task is None:
            raise UserError(
                f"The recipe {self.name} is for pre-training, it has no task; run it with `mimkit pretrain`, or choose "
                "one of the recipes finetune_... or linear_probe_... (`mimkit recipes`)."
            )
        return self.task

    @model_validator(mode="before")
    @classmethod
    def _one_purpose(cls, values: Any) -> Any:
        """A recipe that says nothing of its purpose pre-trains; a method without a name is MAE."""
        if not isinstance(values, dict):
            return values
        method = values.get("method")
        if method is None and values.get("task") is None:
            method = {}
        return {**values, "method": {"name": "mae", **method}} if isinstance(method, dict) else values

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        clashes = [
            *_purpose(self),
            *_sizes(self),
            *_heads(self.method),
            *_method(self.encoder, self.method),
            *_masks(self),
            *_labels(self),
            *_rates(self.optimiser),
            *_crops(self.data),
            *_channels(self.data),
        ]
        if clashes:
            raise Misfit(clashes)
        return self


Clashes = Iterator[tuple[tuple[str, ...], str]]


def _sizes(recipe: Recipe) -> Clashes:
    if isinstance(recipe.encoder, HybridEncoder) and recipe.encoder.masking != "tokens":
        return  # it pads
    for side, cell, axis in zip(recipe.data.size, recipe.encoder.patch, ("height", "width"), strict=True):
        if side % cell:
            low = side // cell * cell
            fits = f"{low} or {low + cell}" if low else f"{cell}"
            yield (
                ("data.size", "encoder.patch"),
                f"data.size: the {axis} {side} is not a multiple of the patch {axis} {cell}; "
                f"use {fits}, or another encoder.patch.",
            )


def _purpose(recipe: Recipe) -> Clashes:
    if recipe.method is not None and recipe.task is not None:
        yield (
            ("task", "method"),
            "task: this recipe has a section `method` too, so it would pre-train; leave one of the two out "
            "(`method: null` drops one that came with `extends`).",
        )


def _labels(recipe: Recipe) -> Clashes:
    """How much is trained, and on how many labels, can each be said in one way alone; and only for a task."""
    task, data = recipe.task, recipe.data
    if task is None and data.val is not None:
        yield (
            ("data.val",),
            "data.val: pre-training measures nothing on labels; leave it out, or probe while it trains with "
            "log.probe.path.",
        )
    if task is not None and task.head == "probe" and task.blocks is not None:
        yield (
            ("task.blocks", "task.head"),
            f"task.blocks: {counted(task.blocks, 'block', 'g')} cannot be trained under task.head=probe, which keeps "
            "the encoder as it is; leave it out.",
        )
    if data.shots is not None and data.label_share < 1:
        yield (
            ("data.shots", "data.label_share"),
            f"data.shots: {counted(data.shots, 'image')} of each class and a share of {data.label_share:g} exclude "
            "each other; give one.",
        )


def _rates(optimiser: Optimiser) -> Clashes:
    if optimiser.name == "lars" and optimiser.layer_decay is not None:
        yield (
            ("optimiser.layer_decay", "optimiser.name"),
            f"optimiser.layer_decay: a decay of {optimiser.layer_decay:g} has no place in LARS, which scales the step "
            "of each tensor by itself; set it to null.",
        )


def _heads(method: Method | None) -> Clashes:
    if method is None:
        return
    decoder = method.decoder
    if decoder.width % decoder.heads:
        yield (
            ("method.decoder.heads", "method.decoder.width"),
            f"method.decoder.heads: {decoder.heads} heads do not divide the decoder's width {decoder.width}; "
            "use a number that does.",
        )


def _method(encoder: PlainEncoder | HybridEncoder, method: Method | None) -> Clashes:
    hybrid = isinstance(encoder, HybridEncoder)
    if isinstance(encoder, HybridEncoder) and encoder.kernel % 2 == 0:
        yield (
            ("encoder.kernel",),
            f"encoder.kernel: a kernel of {encoder.kernel} has no middle to lie on a position; use an odd one: 3, 5, 7 "
            "or 9.",
        )
    if isinstance(method, MCMAE) and not hybrid:
        yield (
            ("method.name", "encoder.name"),
            f"method.name: mcmae fuses features of several strides, and {encoder.name} has one; use "
            "encoder.name=mcmae_base or its like, or method.name=mae.",
        )
    if isinstance(method, MAE) and isinstance(encoder, HybridEncoder) and encoder.masking == "tokens":
        yield (
            ("encoder.masking", "method.name"),
            "encoder.masking: a mask on tokens is made for method.name=mcmae; use that, or masking=units.",
        )


def _masks(recipe: Recipe) -> Clashes:
    """Complementary masks divide the cells of an image evenly."""
    method = recipe.method
    if method is None or not method.mask.complementary:
        return
    ratio, key = method.mask.ratio, "method.mask.complementary"
    count = round(1 / (1 - ratio))
    patch = recipe.encoder.patch
    cells = math.prod(-(-side // step) for side, step in zip(recipe.data.size, patch, strict=True))
    if abs(count * (1 - ratio) - 1) > 1e-9 or cells % count:
        yield (
            (key, "method.mask.ratio", "data.size"),
            f"{key}: {counted(cells, 'cell')} cannot be shared out evenly with {ratio:g} hidden each time; use a ratio "
            "of 1/2, 2/3, 3/4 ... and a number of cells that it divides.",
        )
    if isinstance(recipe.encoder, HybridEncoder) and recipe.encoder.masking == "tokens":
        yield (
            (key, "encoder.masking"),
            f"{key}: a mask on tokens has no complements; use encoder.masking=units.",
        )
    if method.mask.kind != "random":
        yield (
            (key, "method.mask.kind"),
            f"{key}: only random masks have complements; use method.mask.kind=random.",
        )
    if method.decode < 1:
        yield (
            (key, "method.decode"),
            f"{key}: every hidden cell is decoded then; leave method.decode={method.decode:g} out.",
        )


def _crops(data: Data) -> Clashes:
    for name, (low, high) in (("crop_scale", data.crop_scale), ("crop_ratio", data.crop_ratio)):
        if low > high:
            yield (f"data.{name}",), f"data.{name}: {low} comes before {high}; give the smaller one first."


def _channels(data: Data) -> Clashes:
    """Mean, deviation and channel count must speak of the same number of channels."""
    counts = {"data.channels": data.channels, "data.mean": data.mean and len(data.mean)}
    counts["data.std"] = data.std and len(data.std)
    given = {key: count for key, count in counts.items() if count is not None}
    if len(set(given.values())) > 1:
        words = ", ".join(f"{key} {count}" for key, count in given.items())
        yield tuple(given), f"{next(iter(given))}: the numbers of channels differ ({words}); make them equal."
    if (data.mean is None) != (data.std is None):
        missing, there = ("mean", "std") if data.mean is None else ("std", "mean")
        keys = (f"data.{missing}", f"data.{there}")
        yield keys, f"data.{missing}: missing beside data.{there}; give both or neither."
