"""The verbs that look at something: reconstructions of a model, probes of its features, what the augmentation feeds."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from mimkit import plots
from mimkit.analysis.layers import by_blocks
from mimkit.analysis.pca import pca_rgb
from mimkit.analysis.probe import ProbeTable
from mimkit.analysis.probe import probe as probe_features
from mimkit.data.batch import Batch
from mimkit.data.labelled import prepare_training
from mimkit.data.normalise import denormalise, prepare
from mimkit.data.sampling import epoch_order
from mimkit.data.sources import open_source
from mimkit.engine import devices
from mimkit.errors import UserError, counted
from mimkit.masks import Mask
from mimkit.methods.base import Method
from mimkit.recipes import build
from mimkit.recipes.schema import Probe
from mimkit.verbs import watch
from mimkit.verbs.files import write_json
from mimkit.verbs.models import open_model, with_decoder
from mimkit.verbs.pretrain import find_recipe
from mimkit.verbs.quiet import only_from

log = logging.getLogger(__name__)


@torch.no_grad()
def reconstruct(
    model: str | Path, path: str | Path | None, out: Path, ratios: Sequence[float] | None, images: int
) -> Path:
    """See `mimkit.api.reconstruct`."""
    opened = open_model(model, () if path is None else (f"data.path={path}",))
    method, recipe = with_decoder(opened), opened.recipe
    device = devices.choose_device("auto")
    method.to(device)
    source = build.source(recipe)
    batch = watch.fixed_batch(recipe, source, images, device)
    names = [source.key(int(i)) for i in batch.ids]
    masks = _asked(method, batch.images, ratios) if ratios else watch.usual_masks(method, batch.images)
    shown = [method.reconstruct(batch.images, mask) for mask in masks.values()]
    title = opened.label if opened.step is None else f"{opened.label}, step {opened.step}"
    if len(shown) == 1:
        return watch.draw(recipe, shown[0], names, title, out)
    panels = [
        watch.views(recipe, one, f"{ratio:.0%} hidden") for one, ratio in zip(shown, masks, strict=True)
    ]
    figure = plots.reconstruction_grid(
        watch.originals(recipe, batch), panels, names, title, recipe.log.channels
    )
    return plots.save(figure, out)


def _asked(method: Method, images: torch.Tensor, ratios: Sequence[float]) -> dict[float, Mask]:
    """The masks at the ratios that a person asked for."""
    masks = {}
    for ratio in ratios:
        try:
            masks[ratio] = method.draw_mask(images, watch.MASK_SEED, ratio)
        except UserError as error:
            raise UserError(f"--ratios {ratio:g}: {error}") from error
    return masks


@torch.no_grad()
def feature_maps(models: Sequence[str | Path], path: str | Path | None, out: Path, images: int) -> Path:
    """See `mimkit.api.feature_maps`."""
    device = devices.choose_device("auto")
    maps, pictures, names = [], [], []
    for model in models:
        opened = open_model(model, () if path is None else (f"data.path={path}",))
        source = build.source(opened.recipe)
        batch = watch.fixed_batch(opened.recipe, source, images, device)
        pictures.append(watch.originals(opened.recipe, batch))
        names = [source.key(int(i)) for i in batch.ids]
        encoder = opened.encoder.to(device)
        for level, features in zip(encoder.levels, encoder(batch.images).levels, strict=True):
            label = f"{Path(opened.label).name}, stride {level.stride[0]}"
            maps.append((label, pca_rgb(features.float()).rgb.cpu().numpy()))
    return plots.save(
        plots.feature_maps(pictures[0], maps, names, "Feature maps, coloured by their PCA"), out
    )


def probe(model: str | Path, overrides: Sequence[str], out: Path | None) -> ProbeTable:
    """See `mimkit.api.probe`."""
    paths = [text for text in overrides if text.startswith("data.path=")]
    if not paths:
        raise UserError("A probe needs labelled images: add data.path=FOLDER with one sub-folder a class.")
    opened = open_model(model, overrides)
    recipe = opened.recipe
    source = open_source(paths[-1].removeprefix("data.path="), labels=True)
    device = devices.choose_device("auto")
    part = recipe.log.probe or Probe(path=source.name)
    settings = f"{part.folds} folds, at most {counted(part.max_images, 'image')}"
    log.info(
        "Probing %s on %s of %s (%s)",
        opened.label,
        counted(len(source), "image"),
        counted(len(source.classes), "class"),
        settings,
    )
    torch.manual_seed(recipe.train.seed)
    table = probe_features(
        by_blocks(opened.encoder).to(device),
        watch.labelled(recipe, source, part.size, part.max_images, device),
        random=by_blocks(build.encoder(recipe, again=True)).to(device),
        folds=part.folds,
        seed=recipe.train.seed,
        device=device,
        classes=source.classes,
    )
    if out is not None:
        numbers = {"model": str(model), "data": source.name, **asdict(table), "best": asdict(table.best)}
        write_json(out, numbers)
    return table


def contact_sheet(source: str | Path, overrides: Sequence[str], out: Path, images: int) -> Path:
    """See `mimkit.api.data_show`."""
    with only_from(log.name):  # why a recipe is chosen matters to whoever trains with it
        recipe = find_recipe(source, overrides)
    source_ = build.source(recipe)
    recipe = build.settle_data(recipe, source_)
    part = recipe.data
    assert part.mean is not None and part.std is not None
    places = [(0, int(i)) for i in epoch_order(recipe.train.seed, 0, len(source_))[:images]]
    if recipe.task is None:
        data = build.pretrain_data(recipe, source_, None)
        batch: Batch = prepare(data.batch(places), "cpu", part.mean, part.std)
    else:
        torch.manual_seed(recipe.train.seed)
        drawn = build.finetune_data(recipe, source_).batch(places)
        mixing = build.mixing(recipe, len(source_.classes)) if len(drawn.ids) % 2 == 0 else None
        batch = prepare_training(drawn, "cpu", part.mean, part.std, mixing)
    shown = denormalise(batch.images, part.mean, part.std)
    title = f"{counted(len(shown), 'crop')} of {part.size[0]} x {part.size[1]} from {source_.name}"
    names = [source_.key(id) for id in batch.ids.tolist()]
    pictures = list(shown.permute(0, 2, 3, 1).numpy())
    return plots.save(plots.contact_sheet(pictures, names, title, channels=recipe.log.channels), out)
