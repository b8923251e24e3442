"""One function a verb: what the command line and a notebook both call.

A `model` is a run folder or a published file; a `source` is a recipe's name, a YAML file, a run folder or, for
`pretrain`, the images themselves. Overrides are texts `key.path=value`. Every function raises `UserError` for a mistake
in what it was given and `DataError` for data or a checkpoint that cannot be used; the message is one sentence.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mimkit.analysis.comparison import Comparison
    from mimkit.analysis.probe import ProbeTable
    from mimkit.data.check import CheckReport
    from mimkit.data.prepare import PrepareReport
    from mimkit.data.stats import Stats
    from mimkit.verbs.analyze import Analysis
    from mimkit.verbs.demo import DemoResult
    from mimkit.verbs.embed import Embedding
    from mimkit.verbs.evaluate import Evaluation
    from mimkit.verbs.exchange import Exported
    from mimkit.verbs.launch import Launched
    from mimkit.verbs.models import Model
    from mimkit.verbs.plan import Plan
    from mimkit.verbs.predict import Predictions
    from mimkit.verbs.training import Outcome

log = logging.getLogger(__name__)


def pretrain(source: str | Path, overrides: Sequence[str] = (), resume: bool = False) -> "Outcome":
    """Pre-train an encoder: from images (a recipe is chosen), a recipe, a YAML file, or a run folder with `resume`.

    Under torchrun each process calls this. Raises Interrupted when asked to stop, with the state saved.
    """
    from mimkit.verbs.pretrain import run

    return run(source, overrides, resume)


def finetune(source: str | Path, overrides: Sequence[str] = (), resume: bool = False) -> "Outcome":
    """Train an encoder for a task on labelled images: a recipe, a YAML file, or a run folder with `resume`.

    `encoder.init=MODEL` names the weights to start from, `data.path=` the labelled images, `data.val=` those to measure
    on. Under torchrun each process calls this. Raises Interrupted when asked to stop, with the state saved.
    """
    from mimkit.verbs.finetune import run

    return run(source, overrides, resume)


def launch(
    verb: str,
    source: str | Path,
    words: Sequence[str] = (),
    cluster: str = "slurm",
    resume: bool = False,
) -> "Launched":
    """Hand `pretrain` or `finetune` (`verb`) over to a cluster: "slurm", or "local" for processes on this machine.

    words: overrides of the recipe, and options of the job, which have no dot: `nodes=`, `gpus=` and `tasks=`
    (processes) a node, `cpus=` a process, `mem=` (GiB a node), `time=`, `partition=`, `account=`, `qos=`,
    `constraint=`. Needs the extra `slurm`. Returns once the job is in the queue; a job that is preempted or whose time
    is up saves, comes back and goes on.
    """
    from mimkit.verbs.launch import launch as hand_over

    return hand_over(verb, source, words, cluster, resume)


def evaluate(
    model: str | Path,
    overrides: Sequence[str] = (),
    json: str | Path | None = None,
    out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> "Evaluation":
    """Measure a classifier (a fine-tuning run, or a file with a head) on labelled images: `data.path=` names them.

    None named: those that the run held out. json: a file for all numbers. out: a folder for the pictures (confusion,
    classes, calibration, worst mistakes); None: `evaluation` in the run folder. progress: told (done, total).
    """
    from mimkit.verbs.evaluate import evaluate as measure

    return measure(model, overrides, _path(json), _path(out), progress)


def predict(
    model: str | Path,
    path: str | Path,
    overrides: Sequence[str] = (),
    out: str | Path = "predictions.jsonl",
    sheet: str | Path = "predictions.png",
    top: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> "Predictions":
    """Classify images without labels: a file, a folder, a glob, anything that holds images.

    out: JSON lines, `file`, `class`, `confidence` and the `top` classes of each image. sheet: a contact sheet.
    """
    from mimkit.verbs.predict import predict as answer

    return answer(model, path, overrides, Path(out), Path(sheet), top, progress)


def embed(
    model: str | Path,
    path: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    pooling: str | None = None,
    dense: bool = False,
    layer: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> "Embedding":
    """Write the features of images to `out`: .npy, .parquet or .safetensors, float32, with the images' names.

    model: a run folder, a published file, `timm:NAME`, `hf:PATH` or `random:vit_tiny`. pooling: "mean" of the patches
    or "cls", the class token; None: what the head of a classifier reads, else the mean. dense: the whole map
    (h, w, C). layer: an inner one, blocks counted from 1. What was stopped goes on where it was; under torchrun
    processes share the images.
    """
    from mimkit.verbs.embed import embed as write

    return write(model, path, out, overrides, pooling, dense, layer, progress)


def compare(
    inits: Sequence[str | Path],
    overrides: Sequence[str] = (),
    out: str | Path = "compare",
    seeds: int = 3,
    shares: Sequence[float] = (0.01, 0.1, 1.0),
    recipe: str | None = None,
) -> "Comparison":
    """Probe and fine-tune an encoder from several starts under equal settings: which one wins, and by more than noise?

    inits: "random", run folders, published files, `timm:NAME`, `hf:PATH`. `data.path=` names the labelled images,
    `data.val=` those to measure on (else a share is held out). shares: of the labels. recipe: a fine-tuning recipe;
    None: that of the encoder. Everything is kept in the folder `out`; the same call goes on where it was stopped.
    """
    from mimkit.verbs.compare import compare as weigh

    return weigh(inits, overrides, Path(out), seeds, shares, recipe)


def reconstruct(
    model: str | Path,
    path: str | Path | None = None,
    out: str | Path = "reconstruction.png",
    ratios: Sequence[float] | None = None,
    images: int = 8,
) -> Path:
    """Draw what a model with a trained decoder makes of hidden patches; returns the picture.

    path: images; None takes those that the run was trained on. One ratio gives the full panels (for normalised targets
    also the one that leaks, labelled so), several a grid; None: 0.5, 0.75 and 0.9, as far as the images have patches
    enough. images: rows. Raises UserError for a ratio that leaves nothing to see or to predict.
    """
    from mimkit.verbs.look import reconstruct as draw

    return draw(model, path, Path(out), ratios, images)


def feature_maps(
    models: Sequence[str | Path],
    path: str | Path | None = None,
    out: str | Path = "features.png",
    images: int = 8,
) -> Path:
    """Draw the feature maps of whole images, level by level, a model beside the other (MCMAE, figure 5); returns the
    picture. Colours are the three leading principal components of each level.

    models: as for `embed`. path: images; None takes those that the first run was trained on. images: rows.
    """
    from mimkit.verbs.look import feature_maps as draw

    return draw(models, path, Path(out), images)


def probe(model: str | Path, overrides: Sequence[str] = (), json: str | Path | None = None) -> "ProbeTable":
    """kNN and linear probe of frozen features beside the same encoder with random weights; `data.path=` names the set.

    json: a file for the numbers.
    """
    from mimkit.verbs.look import probe as judge

    return judge(model, overrides, _path(json))


def analyze(
    models: Sequence[str | Path],
    path: str | Path,
    overrides: Sequence[str] = (),
    out: str | Path = "analysis",
    images: int = 256,
    labels: bool = False,
    runs: Sequence[str | Path] = (),
    only: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    cka_examples: str | None = None,
    cka_estimator: str | None = None,
    cka_block: int | None = None,
) -> "Analysis":
    """Look inside models on the same `images` of `path`: attention, kernels, CKA, spectra, features; a report in `out`.

    models: run folders, published files, `timm:NAME`, `hf:PATH`, `random:vit_base`. labels: the images lie in class
    folders; probes of every layer too. runs: run folders whose training curves are compared; those among the models are
    added. only: some of "attention", "kernels", "cka", "spectrum", "probes", "maps", "features", "gallery",
    "training". cka_examples: "images" (all tokens of each in a row; None is that), "tokens" or "pooled". cka_estimator:
    "unbiased" (None is that) or "biased". cka_block: images that it takes at once (None: 256; 0: all of them). `out`
    must be new, empty, or an earlier analysis, which is written anew. The numbers are in `.study`.
    """
    from mimkit.verbs.analyze import analyze as look
    from mimkit.verbs.analyze import kind_of

    kind = kind_of(cka_examples, cka_estimator, cka_block)
    return look(models, path, overrides, Path(out), images, labels, runs, only, kind, progress)


def load(model: str | Path, overrides: Sequence[str] = ()) -> "Model":
    """Open a model: a run folder, a published or exported file or folder, `timm:NAME`, `hf:FOLDER`, `random:vit_tiny`.

    The family is told by the names of the tensors. Gives `.encoder`, `.method` where there is a decoder, `.recipe`
    (patch, size, mean, std) and `.report`, which says in words what was loaded. Both modules are in evaluation mode.
    overrides: what the weights do not fix, such as `data.size=384`.
    """
    from mimkit.verbs.exchange import load as open_any

    return open_any(model, overrides)


def convert(file: str | Path, out: str | Path, to: str = "mimkit") -> "Exported":
    """Rewrite weights under other names: into a folder of mimkit, or `to="published"` into a file as MAE's are.

    Nothing may be missing or left over, and nothing is computed. out: a new folder, for "published" a new .pth file.
    """
    from mimkit.verbs.exchange import convert as rewrite

    return rewrite(file, out, to)


def export(model: str | Path, to: str, out: str | Path, decoder: bool = True) -> "Exported":
    """Write a model for others, into the new folder `out`, with a model card.

    to: "safetensors" (read by `mimkit.load`), "timm", "hf" (transformers: ViTMAE with the decoder, ViT without) or
    "onnx". decoder: False leaves it out where the format would hold it. Raises UserError for what a format cannot
    express; the sentence says why and what works.
    """
    from mimkit.verbs.exchange import export as write

    return write(model, to, out, decoder)


def plan(source: str | Path, overrides: Sequence[str] = ()) -> "Plan":
    """What a recipe costs on this machine: parameters, operations, memory, images a second, time of the whole run."""
    from mimkit.verbs.plan import plan as measure

    return measure(source, overrides)


def report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run, report.html with report.png beside it; returns the HTML file."""
    from mimkit.analysis.report import write_report

    return write_report(Path(run), _path(out))


def data_check(
    path: str | Path,
    json: str | Path | None = None,
    jobs: int | None = None,
    patch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> "CheckReport":
    """Look at every file of `path`: missing, broken, duplicate, odd-sized, wrongly named. json: a file for the rows."""
    from mimkit.data.check import check_source
    from mimkit.verbs.files import write_json

    found = check_source(path, jobs=jobs, patch=patch, progress=progress)
    if json is not None:
        write_json(Path(json), found.to_json())
    return found


def data_stats(
    path: str | Path, jobs: int | None = None, progress: Callable[[int, int], None] | None = None
) -> "Stats":
    """Mean and deviation of each channel, and how many channels and bits the images have; of 2000 at the most.

    jobs: processes; None: one a core. progress: told (done, total).
    """
    from mimkit.data.sources import open_source
    from mimkit.data.stats import channel_stats
    from mimkit.data.workers import available_cores

    return channel_stats(open_source(path), jobs=jobs or available_cores(), progress=progress)


def data_prepare(
    path: str | Path,
    out: str | Path,
    short_side: int,
    shards: int | None = None,
    quality: int = 92,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> "PrepareReport":
    """Copy images with the shorter side reduced to `short_side` pixels, as files or as tar shards; restartable."""
    from mimkit.data.prepare import prepare_copy
    from mimkit.data.sources import open_source

    return prepare_copy(
        open_source(path), Path(out), short_side, shards=shards, quality=quality, jobs=jobs, progress=progress
    )


def data_show(
    source: str | Path, overrides: Sequence[str] = (), out: str | Path = "contact-sheet.png", images: int = 32
) -> Path:
    """Draw a contact sheet of what the augmentation of a recipe (or the usual one, on images) feeds the model."""
    from mimkit.verbs.look import contact_sheet

    return contact_sheet(source, overrides, Path(out), images)


@dataclass(frozen=True)
class ModelRow:
    """One encoder: its patch (h, w), parameters, multiply-adds of a 224-pixel image in 10^9, strides, paper."""

    name: str
    patch: tuple[int, ...]
    params: int
    gmacs: float
    levels: list[tuple[int, ...]]
    paper: str


def models() -> list[ModelRow]:
    """The encoders that mimkit has, counted without allocating them."""
    import torch

    from mimkit import encoders
    from mimkit.analysis import cost

    rows = []
    for name in encoders.names():
        with torch.device("meta"):
            encoder = encoders.build(name)
        gmacs = cost.encoder_flops(encoder, (224, 224)) / 2e9
        strides = [level.stride for level in encoder.levels]
        rows.append(
            ModelRow(name, encoder.unit, cost.parameters(encoder), gmacs, strides, encoders.paper(name))
        )
    return rows


def demo(out: str | Path = "demo") -> "DemoResult":
    """Pre-train, reconstruct and probe on photographs that come with scikit-image, in the folder `out`."""
    from mimkit.verbs.demo import run

    return run(Path(out))


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
