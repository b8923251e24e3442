"""MCMAE as a whole: the pre-training model, its gradients, complementary masks, its classifier and linear probe.

Every case of pre-training is computed in both modes, visible units alone and whole maps, and both must meet it. Weights
come from their published names through the zoo. Families: pretrain_ (any grid, ratio, kernel, fusion), fast_,
classifier_, linear_probe_head.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit import masks
from mimkit.data.batch import Batch
from mimkit.encoders.mcmae import MCMAEEncoder
from mimkit.masks import Mask, RandomMasker, keep_by_noise
from mimkit.methods.mcmae import MCMAE
from mimkit.ops import units
from mimkit.tasks.classify import Classifier
from mimkit.zoo import recognise
from mimkit.zoo.load import load
from mimkit.zoo.rules import write
from mimkit.zoo.source import Weights

from ..runner import Case, Outputs, faults, pair, ranks

UNIT = (16, 16)


def encoder_of(config: dict[str, Any], size: tuple[int, int] | None = None) -> MCMAEEncoder:
    return MCMAEEncoder(
        config["embed_dim"],
        config["depth"],
        config["num_heads"],
        config["mlp_ratio"],
        size=size or pair(config["img_size"]),
        kernel=config.get("kernel", 5),
        conv_eps=config.get("eps_cblock_and_patch_embed", 1e-5),
        eps=config.get("eps_transformer", 1e-6),
    )


def model_of(case: Case, dtype: torch.dtype) -> MCMAE:
    config, size = case.config, pair(case.config["img_size"])
    model = MCMAE(
        encoder_of(config),
        RandomMasker(config.get("ratio", 0.75), UNIT),
        size,
        multi_scale=config.get("fuse", True),
        decoder_width=config["decoder_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_heads"],
        mlp_ratio=config.get("decoder_mlp_ratio", config["mlp_ratio"][0]),
        norm_pix=config["norm_pix_loss"],
    )
    weights = case.weights(dtype)
    weights["pos_embed"] = weights["pos_embed"].view(1, -1, config["embed_dim"][2])
    load(model, Weights(weights, case.name, grid=tuple(config["grid"])))
    return model.eval()


def mask_of(noise: np.ndarray, config: dict[str, Any]) -> tuple[Mask, Tensor]:
    """The mask of noise (N, U), and the visible units in order of noise (N, K)."""
    order = keep_by_noise(noise, masks.kept(noise.shape[1], config.get("ratio", 0.75)))
    hidden = np.ones(noise.shape, dtype=bool)
    np.put_along_axis(hidden, order, False, axis=1)
    cells = torch.from_numpy(hidden).unflatten(1, tuple(config["grid"]))
    return Mask(cells, UNIT, masks.indices(~cells)), torch.from_numpy(order)


def both_modes(case: Case, dtype: torch.dtype, run: Any) -> Outputs:
    """What `run(model)` gives with visible units packed; whole maps must serve the case too."""
    model = model_of(case, dtype)
    model.encoder.pack_up_to = 0.0
    assert not (wrong := faults(case, run(model), dtype)), f"whole maps: {wrong}"
    model.encoder.pack_up_to = 1.0
    return run(model)


def pretrain(case: Case, dtype: torch.dtype) -> Outputs:
    def run(model: MCMAE) -> Outputs:
        images, noise = case.tensor("images", dtype), case.input("noise")
        mask, order = mask_of(noise, case.config)
        if "grad_sum" in case.want:
            return gradients(case, model, images, mask)
        got = features(model, images, mask, order)
        got |= {"ids_restore": ranks(noise), "mask": mask.hidden.flatten(1)}
        if mask.hidden.any():  # with nothing hidden the published loss is 0 / 0; ours is refused
            predicted = model.predict_all(images, mask)
            got |= {"pred_slice": predicted[sliced(case)], "pred_sums": sums(predicted)}
            got["loss"] = model(Batch(images, torch.arange(len(images)), mask)).total
        return {name: fitted(value, case.want.get(name)) for name, value in got.items()}

    return both_modes(case, dtype, run)


def features(model: MCMAE, images: Tensor, mask: Mask, order: Tensor) -> dict[str, Tensor]:
    """What the encoder and the fusion give, in order of noise."""
    found = model.encoder(images, mask)
    _, latent = model.encode(images, mask)
    e1, e2, e3 = (units.take(x, ranks(order)) for x in found.levels)
    got = {"e1_units": e1.flatten(2, 3), "e2_units": e2.flatten(2, 3), "e3": e3.flatten(1, 3)}
    got |= {"latent": units.take(latent, ranks(order)), "latent_raster": latent}
    for i, (conv, x) in enumerate(zip(model.fusion.down, (e1, e2), strict=False), start=1):
        got[f"e{i}_down"] = conv(x).flatten(1, 3)
        whole = found.map(i - 1)
        got |= {f"e{i}_visible_slice": whole[:, :, :8, :8], f"e{i}_visible_sums": sums(whole)}
    return got | {f"{name}_sums": sums(got[name]) for name in ("e3", "latent")}


def sums(x: Tensor) -> Tensor:
    return torch.stack([x.sum(), x.abs().sum()])


def sliced(case: Case) -> tuple[slice, ...]:
    return tuple(slice(None, None, step) for step in case.spec["slice"]["pred_slice"])


def fitted(value: Tensor, want: np.ndarray | None) -> Tensor:
    """A case may keep sample 0 and the first units alone."""
    return value[0, : want.shape[0]] if want is not None and want.ndim == value.ndim - 1 else value


def gradients(case: Case, model: MCMAE, images: Tensor, mask: Mask) -> Outputs:
    model.zero_grad()
    seen = images.clone().requires_grad_()
    predicted = model.predict(seen, mask)
    loss = model.errors(predicted, images, mask.decoded).mean()
    loss.backward()
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    published = write(recognise(case.tensors)[0], ours)
    rows = [published[name] for name in case.config["parameters"]]
    of_units = units.patchify(seen.grad, UNIT).abs().sum(-1).unflatten(1, mask.grid)
    assert not of_units[mask.hidden].any()
    return {
        "loss": loss,
        "mask": mask.hidden.flatten(1),
        "grad_sum": torch.stack([x.sum() for x in rows]),
        "grad_abs_sum": torch.stack([x.abs().sum() for x in rows]),
        "grad_image_units": of_units,
        "grad_image_sums": sums(seen.grad),
    }


def fast(case: Case, dtype: torch.dtype) -> Outputs:
    """Complementary masks: group g sees the units with ranks [g U / 4, (g + 1) U / 4)."""

    def run(model: MCMAE) -> Outputs:
        images, noise = case.tensor("images", dtype), case.input("noise")
        count = case.config["groups"]
        group = masks.groups_by_noise(noise, count)
        cells = torch.from_numpy(group).unflatten(1, tuple(case.config["grid"]))
        mask = Mask(cells != 0, UNIT, masks.indices(cells == 0), group=cells)
        every, many = mask.spread(), images.repeat(count, 1, 1, 1)
        order = np.argsort(noise, axis=1).reshape(len(noise), count, -1).swapaxes(0, 1)  # (groups, N, K)
        _, latent = model.encode(many, every)
        latent = units.take(latent, ranks(order.reshape(len(many), -1)))
        predicted = model.predict_all(many, every)
        errors = model.errors(model.predict(many, every), many, every.decoded)
        return {
            "masks": every.hidden.flatten(1).unflatten(0, (count, -1)),
            "latent": latent,
            "latent_sums": sums(latent),
            "pred_slice": predicted[:, :, :: predicted.shape[2] // case.want["pred_slice"].shape[2]],
            "pred_sums": sums(predicted),
            "loss": model(Batch(images, torch.arange(len(images)), mask)).total,
            "loss_groups": errors.unflatten(0, (count, -1)).mean((1, 2)),
        }

    return both_modes(case, dtype, run)


def classifier_of(case: Case, dtype: torch.dtype, **options: Any) -> Classifier:
    config = case.config
    model = Classifier(encoder_of(config), [str(i) for i in range(config["num_classes"])], **options)
    weights = case.weights(dtype) | {name: torch.tensor(0) for name in case.spec["computed"]}
    grid = tuple(side // 16 for side in pair(config["img_size"]))
    load(model, Weights(weights, case.name, grid=grid))
    return model.eval()


def classifier(case: Case, dtype: torch.dtype) -> Outputs:
    model, images = classifier_of(case, dtype), case.tensor("images", dtype)
    batch = Batch(images, torch.arange(len(images)))
    found = model.encoder(images)
    if not case.config["global_pool"]:  # mimkit pools; the published code takes the first patch behind a norm
        weights = case.weights(dtype)
        tokens = found.levels[-1].flatten(1, 2)
        scale, shift = weights["norm.weight"], weights["norm.bias"]
        first = F.layer_norm(tokens, tokens.shape[-1:], scale, shift, case.config["eps_transformer"])[:, 0]
        return {"features": first, "logits": model.head(first)}
    e1, e2 = found.map(0), found.map(1)
    return {
        "e1_slice": e1[:, :, ::3, ::3],
        "e1_sums": sums(e1),
        "e2": e2[:, :, ::2, ::2],
        "e3": found.levels[-1].flatten(1, 2),
        "features": model.features(batch),
        "logits": model.predict(batch).logits,
    }


def linear_probe_head(case: Case, dtype: torch.dtype) -> Outputs:
    model, images = classifier_of(case, dtype, probe=True), case.tensor("images", dtype)
    assert not any(p.requires_grad for name, p in model.named_parameters() if not name.startswith("head."))
    batch = Batch(images, torch.arange(len(images)))
    got = {"logits_eval": model.logits(batch)}
    got |= {"logits_train": model.train().logits(batch)}
    return got | {
        f"running_{kind}_after": getattr(model.head[0], f"running_{kind}") for kind in ("mean", "var")
    }


FAMILIES = {
    "pretrain_": (pretrain, True),
    "fast_": (fast, True),
    "classifier_": (classifier, True),
    "linear_probe_head": (linear_probe_head, True),
}
