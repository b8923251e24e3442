"""Puts published or own weights into an encoder or a pre-training method, strictly, and reports in words.

The order: recognise the format by its names, bring the tensors under our names (`zoo.rules`), compare with what the
model has, fit what may be fitted (`zoo.adapt`), and only when everything left over or missing has a reason copy
anything. A model is therefore either wholly initialised or untouched.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mimkit.encoders.base import Encoder
from mimkit.encoders.mcmae_forms import FormEncoder
from mimkit.errors import DataError
from mimkit.zoo import recognise
from mimkit.zoo.adapt import fit_kernel, fit_offsets, fit_table
from mimkit.zoo.likeness import depth_of, looks_like, named, remedy, size_of, variant
from mimkit.zoo.mae import HEAD, OWN, POOL_NORM
from mimkit.zoo.mcmae import DETECTOR, NECK, SEGMENTER, form_of
from mimkit.zoo.mcmae_shapes import is_hybrid, name_of
from mimkit.zoo.report import Change, LoadReport
from mimkit.zoo.rules import Family, Reading, Rule, read
from mimkit.zoo.source import open_source
from mimkit.zoo.weights import Weights

log = logging.getLogger(__name__)

FOREIGN_ENCODER = Family("timm's own names", (Rule(("{rest}",), "encoder.model.{rest}"),))
Tensors = dict[str, Tensor]
Reasons = dict[str, tuple[str, ...]]  # reason -> names

OTHER_DECODER = "the file's decoder is of another size or predicts other patches"
OTHER_HEAD = "a classification head for another number of classes"
KERNELS = ("patch_embed.proj.weight", "patch_embed1.proj.weight")  # that see the channels of the images
FUSION = "the fusion of the levels, which only pre-training has"
TOKEN_NORM = "the norm of the tokens, which this model has behind its pooling instead"
PARTS = (  # that a model may lack
    ("head.", HEAD),
    ("fc_norm.", POOL_NORM),
    ("encoder.norm.", TOKEN_NORM),
    ("fusion.", FUSION),
    NECK,
    DETECTOR,
    SEGMENTER,
)


def initialise(target: nn.Module, source: str) -> LoadReport:
    """Start `target`, an encoder or a method, from `source`: a run folder, a file, `timm:NAME` or `hf:FOLDER`.

    The encoder is loaded, and the decoder where file and target have one of the same size; position tables, patch
    kernels and channels are fitted. Raises UserError where there is no such source, DataError where the file cannot be
    read, is of another architecture or leaves anything unexplained; `target` is untouched then.
    """
    report = load(target, open_source(source))
    log.info("%s", report)
    return report


def load(target: nn.Module, weights: Weights) -> LoadReport:
    """`initialise` with weights that are at hand."""
    own = _own_tensors(target)
    family, reading = read_strictly(weights, _family(weights, own))
    _check_size(weights, reading.tensors, own)
    _check_form(weights, reading.tensors, own)
    take, aside = _choose(reading, own, _encoder(target).heads)
    fresh = _explain(target, [name for name in own if name not in take], reading, aside)
    _check_complete(weights, [name for name in take if name not in own], fresh.pop("", ()))
    fitted, changes = _fit(target, weights, take, own)
    with torch.no_grad():
        for name, tensor in fitted.items():
            own[name].copy_(tensor)
    norm_pix = weights.norm_pix if _decoder(reading.tensors) else None
    notes = tuple(_notes(target, weights))
    return LoadReport(
        weights.label, family.name, tuple(fitted), tuple(changes), aside, fresh, norm_pix, notes
    )


def _own_tensors(target: nn.Module) -> Tensors:
    """Parameters and buffers by the names that a method gives them."""
    prefix = "encoder." if isinstance(target, Encoder) else ""
    return {prefix + name: tensor for name, tensor in target.state_dict().items()}


def _encoder(target: nn.Module) -> Encoder:
    encoder = target if isinstance(target, Encoder) else target.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    return encoder


def _part(names: Iterable[str], part: str) -> list[str]:
    return [name for name in names if name.startswith(part)]


def _decoder(names: Iterable[str]) -> list[str]:
    return _part(names, "decoder.")


def read_strictly(weights: Weights, family: Family | None = None) -> tuple[Family, Reading]:
    """The format and the tensors under our names. Raises DataError for names that no rule explains.

    family: the format; None: the one that explains most of the names.
    """
    family = family or recognise(weights.tensors)[0]
    reading = read(family, weights.tensors)
    if reading.unexplained:
        first = ", ".join(reading.unexplained[:3])
        raise DataError(
            f"{weights.label} looks like {looks_like(weights.tensors)}; {len(reading.unexplained)} of its "
            f"{len(weights.tensors)} tensors have no place in this model (such as {first}). "
            f"{remedy(weights.tensors)}."
        )
    return family, reading


def _family(weights: Weights, own: Tensors) -> Family:
    """The format of the file; timm's own names where the encoder is timm's."""
    family, _ = recognise(weights.tensors)
    foreign = any(name.startswith("encoder.model.") for name in own)
    return FOREIGN_ENCODER if foreign and family is not OWN else family


def _check_size(weights: Weights, theirs: Tensors, own: Tensors) -> None:
    """Raise DataError when the file's encoder has another width or depth."""
    if is_hybrid(theirs) and is_hybrid(own):
        (theirs_name, _), (own_name, _) = name_of(theirs, 1), name_of(own, 1)  # heads are no shapes
        if theirs_name != own_name:
            (theirs_name, _), (own_name, _) = name_of(theirs), name_of(own)
            raise DataError(
                f"{weights.label} holds an encoder {theirs_name}; this one is {own_name}. Set "
                f"encoder.name={theirs_name}, or choose another file."
            )
    found, wanted = size_of(theirs), size_of(own)
    if found and wanted and found != wanted:
        raise DataError(
            f"{weights.label} holds an encoder {variant(*found)}; this one is {variant(*wanted)}. "
            f"Set encoder.name={named(*found) or 'vit:WIDTHxDEPTHxHEADS'}, or choose another file."
        )


def _check_form(weights: Weights, theirs: Tensors, own: Tensors) -> None:
    """Raise DataError when the file's encoder was trained to attend otherwise; files of pre-training start any form."""
    found, wanted = form_of(theirs), form_of(own)
    if None in (found, wanted) or found == wanted:
        return
    if found != "classifier":
        raise DataError(
            f"{weights.label} holds an encoder of the form {found!r}, with relative positions that one of the form "
            f"{wanted!r} has not; set encoder.form={found}, or start from a file of pre-training."
        )
    if any(_part(theirs, part) for part in ("head.", "fc_norm.")):
        raise DataError(
            f"{weights.label} is a trained classifier, whose encoder attends everywhere, and this one is of the form "
            f"{wanted!r}; set encoder.form=classifier, or start from a file of pre-training."
        )


def _choose(reading: Reading, own: Tensors, heads: Sequence[str]) -> tuple[Tensors, Reasons]:
    """What of the file is wanted, and what is set aside: reason -> names. heads: of foreign networks, by module."""
    take = dict(reading.tensors)
    aside = {what: tuple(names) for what, names in reading.aside.items()}

    def drop(why: str, names: list[str]) -> None:
        if names:
            aside[why] = tuple(names)
        for name in names:
            del take[name]

    if not _decoder(own):
        drop("a decoder, which an encoder alone does not have", _decoder(take))
    elif not _same_decoder(take, own):
        drop(OTHER_DECODER, _decoder(take))
    for part, what in PARTS:
        if not _part(own, part):
            drop(what, _part(take, part))
    drop(HEAD, [name for head in heads for name in _part(take, f"encoder.{head}.") if name not in own])
    if any(take[name].shape != own[name].shape for name in _part(take, "head.") if name in own):
        drop(OTHER_HEAD, _part(take, "head."))
    if "encoder.cls_token" not in own:
        drop("a class token, which this encoder does not have", [n for n in take if n == "encoder.cls_token"])
    return take, aside


def _same_decoder(theirs: Tensors, own: Tensors) -> bool:
    """Whether the decoders agree in depth and in every shape but that of the position table, which can be fitted."""
    shared = [name for name in _decoder(theirs) if name in own and not name.endswith("pos_embed")]
    if any(theirs[name].shape != own[name].shape for name in shared):
        return False
    return depth_of(theirs, "decoder") == depth_of(own, "decoder")


def _explain(target: nn.Module, missing: list[str], reading: Reading, aside: Reasons) -> Reasons:
    """Why parameters of the model keep their start: reason -> names; those without a reason under ""."""
    prefix = "encoder." if isinstance(target, Encoder) else ""
    computed = {prefix + name for name, p in target.named_parameters() if not p.requires_grad}
    started = form_of(reading.tensors) == "classifier"  # from pre-training, in whatever form
    reasons: dict[str, list[str]] = {}
    for name in missing:
        why = _reason(name, bool(_decoder(reading.tensors)), aside)
        if not why and started and isinstance(_encoder(target), FormEncoder):
            why = _of_form(name)
        if not why and name.endswith("pos_embed") and name in computed:
            why = "fixed sine-cosine positions, which are computed"
        reasons.setdefault(why, []).append(name)
    return {why: tuple(names) for why, names in reasons.items()}


def _reason(name: str, decoder_in_file: bool, aside: Reasons) -> str:
    if name.startswith("decoder."):
        if OTHER_DECODER in aside:
            return OTHER_DECODER
        return "" if decoder_in_file else "the file holds no decoder"
    if name.startswith("fusion."):
        return "the file holds no fusion of the levels, so it starts anew"
    if name.startswith("head."):
        return OTHER_HEAD if OTHER_HEAD in aside else "the file holds no classification head"
    if name.startswith("fc_norm."):
        return "the file's last norm stands before the pooling"
    if name.startswith("encoder.norm.") and POOL_NORM in aside:
        return "the file's classifier has its last norm behind the pooling instead"
    return "the file has no class token" if name == "encoder.cls_token" else ""


def _of_form(name: str) -> str:
    """Why what only a form for dense features has keeps its start."""
    if ".relative." in name:
        return "the file's encoder has no relative positions, so they start at zero and change nothing"
    return "the file has no layer scale, so it starts as it is built" if ".ls" in name else ""


def _check_complete(weights: Weights, left: list[str], missing: tuple[str, ...]) -> None:
    """Raise DataError when tensors of the file have no place or parameters of the model no tensor, without a reason."""
    faults = []
    if left:
        faults.append(f"{len(left)} of its tensors have no place in the model ({', '.join(left[:3])})")
    if missing:
        faults.append(f"{len(missing)} of the model are not in it ({', '.join(missing[:3])})")
    if faults:
        scale = any(".ls" in name for name in [*left, *missing])
        advice = (
            "set encoder.layer_scale as the file has it" if scale else "use a file of the same architecture"
        )
        kind = f" looks like {looks_like(weights.tensors)} and" if left and not scale else ""
        raise DataError(f"{weights.label}{kind} does not fit: {' and '.join(faults)}; {advice}.")


def _fit(target: nn.Module, weights: Weights, take: Tensors, own: Tensors) -> tuple[Tensors, list[Change]]:
    """Every tensor in the shape of the model's, and what had to be changed. Raises DataError for other shapes."""
    fitted: Tensors = {}
    changes: list[Change] = []
    stem = f"encoder.{_encoder(target).stem}"
    for name, tensor in take.items():
        wanted = own[name].shape
        done: list[Change] = []
        place = _table_of(target, name, wanted) if name.endswith(".pos_embed") else None
        if place is not None and tensor.shape[-1] == wanted[-1]:
            tensor, done = fit_table(name, tensor, *place, weights.grid)
        elif ".relative." in name and tensor.shape[-1] == wanted[-1]:
            tensor, done = fit_offsets(name, tensor, wanted, weights.grid)
        elif (name.endswith(KERNELS) or name == stem) and tensor.shape[0] == wanted[0]:
            tensor, done = fit_kernel(name, tensor, wanted)
        if tensor.shape != wanted:
            raise DataError(
                f"{weights.label}: {name} has the shape {tuple(tensor.shape)}, the model's is {tuple(wanted)}; "
                "use a file of the same architecture."
            )
        fitted[name] = tensor
        changes += done
    return fitted, changes


def _table_of(target: nn.Module, name: str, shape: Sequence[int]) -> tuple[tuple[int, ...], int] | None:
    """(grid, rows in front of it) of the position table `name` of the model, (1, n, C); None where it has no grid."""
    owner: Any = _encoder(target) if name.startswith("encoder.") else target.get_submodule("decoder")
    return None if owner.grid is None else (tuple(owner.grid), shape[1] - math.prod(owner.grid))


def _notes(target: nn.Module, weights: Weights) -> Iterable[str]:
    eps = getattr(getattr(_encoder(target), "norm", None), "eps", None)
    if weights.eps is not None and eps is not None and weights.eps != eps:
        yield f"note: its layer norms add {weights.eps:g} to the variance, this model's {eps:g}"
