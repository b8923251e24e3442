"""MAE as a whole: the model forward and backward, its training steps and its parameter groups.

Weights come from their published names (or those of transformers) through the zoo. Families: mae_forward (any names,
any grid, tables read or computed), mae_gradients, mae_train, param_groups. Transfer is served by `classify`.
"""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimkit import masks
from mimkit.data.batch import Batch
from mimkit.encoders import build
from mimkit.encoders.vit import ViT
from mimkit.engine.optimiser import adamw, layer_decay_groups, pretrain_groups, set_lr
from mimkit.engine.schedule import Schedule
from mimkit.masks import Mask, RandomMasker, keep_by_noise
from mimkit.methods.mae import MAE
from mimkit.ops import units
from mimkit.tasks.classify import Classifier
from mimkit.zoo import recognise
from mimkit.zoo.load import load
from mimkit.zoo.rules import write
from mimkit.zoo.source import Weights

from ..runner import Case, Outputs, pair, ranks

FINETUNE_DECAY = 0.05  # all sizes
SIZES = {"B": "vit_base", "L": "vit_large", "H": "vit_huge"}


def model_of(case: Case, dtype: torch.dtype) -> MAE:
    """The tiny model of a case, its weights read from their published names."""
    config = case.config
    patch, size = pair(config["patch_size"]), pair(config["img_size"])
    shared: dict[str, Any] = {"mlp_ratio": config.get("mlp_ratio", 4.0), "eps": config["norm_eps"]}
    encoder = ViT(
        config["embed_dim"],
        config["depth"],
        config["num_heads"],
        patch=patch,
        channels=config.get("in_chans", 3),
        size=size,
        **shared,
    )
    model = MAE(
        encoder,
        RandomMasker(config["mask_ratio"], patch),
        size,
        decoder_width=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_num_heads"],
        norm_pix=bool(config.get("norm_pix_loss", False)),
        **shared,
    )
    load(model, Weights(case.weights(dtype), case.name))
    return model


def mask_from(noise: np.ndarray, config: dict[str, Any], images: Tensor) -> tuple[Mask, Tensor]:
    """The mask of given noise (N, L) on images, and the visible indices in order of noise (N, K)."""
    patch = pair(config["patch_size"])
    order = keep_by_noise(noise, masks.kept(noise.shape[1], config["mask_ratio"]))
    hidden = np.ones(noise.shape, dtype=bool)
    np.put_along_axis(hidden, order, False, axis=1)
    cells = torch.from_numpy(hidden).unflatten(1, (images.shape[2] // patch[0], images.shape[3] // patch[1]))
    return Mask(cells, patch, masks.indices(~cells)), torch.from_numpy(order)


def loss_of(model: MAE, images: Tensor, mask: Mask, norm_pix: bool) -> Tensor:
    model.norm_pix = norm_pix
    return model(Batch(images, torch.arange(len(images)), mask)).total


def mae_forward(case: Case, dtype: torch.dtype) -> Outputs:
    model, config = model_of(case, dtype).eval(), case.config
    images, noise = case.tensor("image", dtype), case.input("noise")
    mask, order = mask_from(noise, config, images)
    features = model.encoder(images, mask)
    raster = features.levels[-1].flatten(1, -2)  # (N, K, D), ascending
    got = {
        "latent": torch.cat([features.prefix, units.take(raster, ranks(order))], dim=1),
        "pred": model.predict_all(images, mask),
        "mask": mask.hidden.flatten(1),
        "ids_restore": ranks(noise),
    }
    if mask.hidden.any():  # with nothing hidden the published loss is 0 / 0; ours is refused
        got["loss"] = loss_of(model, images, mask, bool(config.get("norm_pix_loss", False)))
        got["loss_raw"] = loss_of(model, images, mask, False)
        got["loss_norm"] = loss_of(model, images, mask, True)
    return got


def mae_gradients(case: Case, dtype: torch.dtype) -> Outputs:
    model, family = model_of(case, dtype), recognise(case.tensors)[0]
    images = case.tensor("image", dtype)
    mask, _ = mask_from(case.input("noise"), case.config, images)
    got: dict[str, Any] = {}
    for kind in ("raw", "norm"):
        model.zero_grad()
        loss_of(model, images, mask, kind == "norm").backward()
        ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        gradients = write(family, ours)
        names = [name for name in case.tensors if name in gradients]
        got[f"sum_{kind}"] = np.array([gradients[name].sum().item() for name in names])
        got[f"abssum_{kind}"] = np.array([gradients[name].abs().sum().item() for name in names])
        got["names"] = np.array(names)
    return got | {f"grad_{name}": gradients[name] for name in names}


def mae_train(case: Case, dtype: torch.dtype) -> Outputs:
    model, family, config = model_of(case, dtype), recognise(case.tensors)[0], case.config
    schedule = Schedule(
        config["lr"], config["epochs"], config["steps_per_epoch"], config["warmup_epochs"], config["min_lr"]
    )
    groups = pretrain_groups(model, config["weight_decay"])
    decayed = {name for group in groups if group["weight_decay"] for name, _ in group["params"]}
    optimiser = adamw(groups, tuple(config["betas"]), config["adam_eps"])
    images = case.tensor("image", dtype)
    losses, rates = [], []
    for step in range(schedule.steps):
        mask, _ = mask_from(case.input("noise_step_k", k=step), config, images)
        rates.append(schedule.at(step))
        set_lr(optimiser, rates[-1])
        loss = loss_of(model, images, mask, config["norm_pix_loss"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    state = model.state_dict()
    final = write(family, state)
    flags = write(family, {name: torch.full_like(x, name in decayed) for name, x in state.items()})
    names = list(case.tensors)
    return {
        "loss": losses,
        "lr": rates,
        "names": np.array(names),
        "final_sums": np.array([[final[n].sum().item(), final[n].abs().sum().item()] for n in names]),
        "decayed": np.array([bool(flags[n].flatten()[0]) for n in names]),
    }


def param_groups(case: Case, dtype: torch.dtype) -> Outputs:
    got: dict[str, Any] = {}
    for found in case.output_names(r"(.+)_group_scale"):
        size, decay, pooled = re.search(
            r"ViT-(\w+), decay ([\d.]+), global_pool=(\w+)", case.said(found[0])
        ).groups()
        got |= {
            f"{found[1]}_{key}": value
            for key, value in finetune_groups(SIZES[size], float(decay), pooled == "True").items()
        }
    if "pretrain_decay" in case.want:
        got |= pretraining_groups(case)
    return got


def finetune_groups(name: str, decay: float, mean_pooled: bool) -> dict[str, Any]:
    with torch.device("meta"):
        classes = [str(number) for number in range(1000)]
        model = Classifier(build(name), classes, pooling="mean" if mean_pooled else "cls")
    groups = layer_decay_groups(model, FINETUNE_DECAY, decay, model.depth_of, model.layers)
    members = [[name.removeprefix("encoder.") for name, _ in group["params"]] for group in groups]
    return {
        "group_scale": [group["lr_scale"] for group in groups],
        "group_wd": [group["weight_decay"] for group in groups],
        "names": np.array([name for group in members for name in group]),
        "group": [i for i, group in enumerate(members) for _ in group],
        "group_sizes": [len(group) for group in members],
    }


def pretraining_groups(case: Case) -> dict[str, Any]:
    """The groups of the tiny MAE that the case refers to (depths 2 and 2), in the published order of names."""
    patch = (4, 4)
    model = MAE(ViT(8, 2, 2, patch, size=(8, 8)), RandomMasker(0.75, patch), (8, 8), 8, 2, 2)
    plain, decayed = pretrain_groups(model, 0.05)
    got = {}
    for key, group in (("pretrain_decay", decayed), ("pretrain_no_decay", plain)):
        published = write(recognise(case.want[key])[0], dict(group["params"]))
        got[key] = np.array([name for name in published_order(model) if name in published])
    return got


def published_order(model: MAE) -> list[str]:
    """Names as the published model has them: tokens and tables first, then modules from front to back."""
    ours = dict(model.state_dict())
    written = list(write(recognise(["cls_token", "mask_token"])[0], ours))
    first = ["cls_token", "pos_embed", "mask_token", "decoder_pos_embed"]
    return first + [name for name in written if name not in first]


FAMILIES = {
    "mae_forward": (mae_forward, True),
    "mae_gradients": (mae_gradients, True),
    "mae_train": (mae_train, True),
    "param_groups": (param_groups,),
}
