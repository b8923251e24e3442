"""Image classification: fine-tuning, partial fine-tuning and the linear probe (MAE, He et al. 2022, section 4.1,
figure 9, appendix A.1 and A.2).

One module serves the three, because they differ in what trains and in one norm alone: fine-tuning pools the patches,
normalises behind the pooling and trains everything; a partial fine-tuning leaves the first blocks as they are; a linear
probe reads the frozen encoder through a batch norm without weights. Names of parameters are those of the published
files (`head.*`, `fc_norm.*`, `head.0.*` and `head.1.*` of a probe), so its checkpoints can be exchanged.
"""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimkit import plots
from mimkit.data.batch import Batch
from mimkit.data.normalise import FULL_SCALE
from mimkit.encoders.base import Encoder
from mimkit.errors import UserError, counted
from mimkit.methods.base import Loss
from mimkit.ops.attention import LAYER_NORM_EPS
from mimkit.tasks.base import Task
from mimkit.tasks.class_metric import ClassMetric, ClassPredictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEAD_STD, PROBE_STD = 2e-5, 0.01  # truncated normals, as published
PROBE_EPS = 1e-6  # of the probe's batch norm
POOLINGS = ("mean", "cls")
SECOND_HALF = re.compile(r"\.(norm2|mlp|ls2)\.")  # of a block: its MLP with the norm before it


def build(encoder: Encoder, **options: Any) -> "Classifier":
    """A classifier on `encoder`; see `Classifier` for the options."""
    return Classifier(encoder, **options)


class Classifier(Task[ClassPredictions]):
    """An encoder, pooling, and a linear head.

    classes: their names; a class is known by its place here. pooling: "mean" of the patches, normalised behind the
    pooling where the encoder can leave its own last norm out (it then does: the encoder is changed), or "cls", the
    class token behind the encoder's norm. smoothing: of the targets that come as labels (soft targets are taken as
    they are). weights: a factor on the loss of each class, for classes of unequal size.
    blocks: train the last so many blocks alone, with norm and head; 0.5 is the MLP half of the last one (figure 9).
    probe: the linear probe of appendix A.1; the encoder is frozen and always in evaluation mode. Where it ends without
    a norm, a frozen one stands behind the pooling (the published MCMAE).
    """

    name = "classify"
    weights: Tensor | None

    def __init__(
        self,
        encoder: Encoder,
        classes: Sequence[str],
        pooling: str = "mean",
        smoothing: float = 0.1,
        weights: Sequence[float] | None = None,
        blocks: float | None = None,
        probe: bool = False,
        eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        _check(classes, pooling, weights)
        self.encoder, self.classes, self.pooling = encoder, tuple(classes), pooling
        self.smoothing, self.probe = smoothing, probe
        width = encoder.levels[-1].channels
        behind = pooling == "mean" and (encoder.ends_raw or (not probe and encoder.drop_norm()))
        self.head = probe_head(width, len(classes)) if probe else fresh_head(width, len(classes))
        self.fc_norm = nn.LayerNorm(width, eps=eps) if behind else nn.Identity()  # in the published order
        factors = None if weights is None else torch.tensor(weights, dtype=torch.get_default_dtype())
        self.register_buffer("weights", factors, persistent=False)
        train_last(encoder, 0 if probe else blocks, norm=not probe)
        self.fc_norm.requires_grad_(not probe)  # of a probe: as it starts, or as the file has it
        self.train()

    def losses(self, batch: Batch) -> Loss:
        """Mean cross-entropy of a prepared batch, in float32 or better; targets are labels (B,) int64 or soft
        (B, classes).
        """
        if batch.targets is None:
            raise UserError("A classifier is trained on images with labels; these have none.")
        return Loss(cross_entropy(self.logits(batch), batch.targets, self.smoothing, self.weights))

    @torch.no_grad()
    def predict(self, batch: Batch) -> ClassPredictions:
        return ClassPredictions(self.logits(batch))

    def logits(self, batch: Batch) -> Tensor:
        """(B, classes) of a prepared batch, in float32 or better."""
        return _precise(self.head(_precise(self.features(batch))))

    def features(self, batch: Batch) -> Tensor:
        """(B, C): what the head reads."""
        graph: AbstractContextManager[object] = torch.no_grad() if self.probe else nullcontext()
        with graph:
            pooled = self.encoder(batch.images, sizes=batch.sizes).pooled(self.pooling)
        return self.fc_norm(pooled)

    def metric(self) -> ClassMetric:
        return ClassMetric(self.classes)

    def draw(
        self,
        batch: Batch,
        predictions: ClassPredictions,
        names: Sequence[str] = (),
        channels: tuple[int, ...] | None = None,
    ) -> "Figure":
        """A contact sheet: the images with "truth: guess, confidence" (or the guess alone) below."""
        scale = FULL_SCALE.get(batch.images.dtype, 1.0)
        images = [image.permute(1, 2, 0).float().div(scale).cpu().numpy() for image in batch.images]
        confidences, guesses = (part[:, 0].tolist() for part in predictions.top(1))
        said = [f"{self.classes[i]} {c:.0%}" for i, c in zip(guesses, confidences, strict=True)]
        if batch.targets is not None:
            truths = [self.classes[i] for i in batch.targets.tolist()]
            said = [f"{truth}: {guess}" for truth, guess in zip(truths, said, strict=True)]
        if names:
            said = [f"{name}: {guess}" for name, guess in zip(names, said, strict=True)]
        return plots.contact_sheet(images, said, channels=channels)

    def train(self, mode: bool = True) -> "Classifier":
        """A probe's encoder stays in evaluation mode, and so do batch norms whose weights are frozen: what does not
        train keeps its statistics.
        """
        super().train(mode)
        if self.probe:
            self.encoder.eval()
        for module in self.encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not _trains(module):
                module.eval()
        return self


def fresh_head(width: int, classes: int) -> nn.Module:
    """The head of fine-tuning: linear, weights so small that all classes start equally likely."""
    head = nn.Linear(width, classes)
    nn.init.trunc_normal_(head.weight, std=HEAD_STD)
    nn.init.zeros_(head.bias)
    return head


def probe_head(width: int, classes: int) -> nn.Module:
    """The head of a linear probe: batch norm without weights, then linear (appendix A.1, after Doersch et al. 2015)."""
    linear = nn.Linear(width, classes)
    nn.init.trunc_normal_(linear.weight, std=PROBE_STD)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=PROBE_EPS), linear)


def cross_entropy(
    logits: Tensor, targets: Tensor, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Mean over the batch of -sum_c w_c t_c log softmax(logits)_c, a scalar.

    targets: labels (B,) int64, smoothed to 1 - s + s / C and s / C; or soft (B, C), taken as they are. With weights
    (C,) the mean is still over images: rare classes weigh more, a batch does not.
    """
    if targets.is_floating_point():
        targets, smoothing = targets.to(logits.dtype), 0.0
    each = F.cross_entropy(logits, targets, weights, reduction="none", label_smoothing=smoothing)
    return each.mean()


def train_last(encoder: Encoder, blocks: float | None, norm: bool = True) -> None:
    """Let the last `blocks` layers of the encoder train and freeze the rest; None: all of it, position table included.

    0.5 stands for the MLP half of a block with the norm before it. norm: what lies behind the blocks trains too.
    Raises UserError unless `blocks` is a multiple of 0.5 between 0 and the depth.
    """
    if blocks is None or (blocks == 0 and not norm):
        encoder.requires_grad_(blocks is None)
        return
    most = encoder.deepest - 1
    if not (0 <= blocks <= most and blocks * 2 == int(blocks * 2)):
        raise UserError(
            f"{counted(blocks, 'trained block', 'g')}: give 0, 0.5, 1, 1.5 ... up to the encoder's {most}, or leave it "
            "out."
        )
    first = encoder.deepest - int(blocks)  # the first layer that trains as a whole
    layers = {name: encoder.depth_of(name) for name, _ in encoder.named_parameters()}
    halved = {
        name for name in layers if blocks % 1 and layers[name] == first - 1 and SECOND_HALF.search(name)
    }
    if blocks % 1 and not halved:
        raise UserError(
            f"{counted(blocks, 'trained block', 'g')}: the blocks of this encoder have no MLP half; give a whole "
            f"number up to {most}."
        )
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(layers[name] >= first or name in halved)


def _trains(module: nn.Module) -> bool:
    """Whether a parameter of it trains, or it has none."""
    parameters = list(module.parameters())
    return not parameters or any(parameter.requires_grad for parameter in parameters)


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check(classes: Sequence[str], pooling: str, weights: Sequence[float] | None) -> None:
    if len(classes) < 2:
        raise UserError(
            f"A classifier needs at least two classes; there is {len(classes)}: give a folder with a folder for each "
            "class, or a table with at least two labels."
        )
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise UserError(f"The class {twice!r} is named twice; every class needs a name of its own.")
    if pooling not in POOLINGS:
        raise UserError(f"Unknown pooling {pooling!r}; known are {' and '.join(map(repr, POOLINGS))}.")
    if weights is not None and len(weights) != len(classes):
        raise UserError(
            f"There are {len(weights)} class weights for {len(classes)} classes; give one for each."
        )
