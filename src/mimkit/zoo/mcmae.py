"""The files of MCMAE / ConvMAE (Gao et al. 2022): published names become ours, for pre-training and every transfer.

Published 1 x 1 convolutions are linear layers here; all other tensors keep their form. The fusion of the levels and the
norm behind it belong to the method here, so their names begin with `fusion.`. Tables of relative positions have a row
for each offset along each axis here, (2h - 1, 2w - 1, heads), and lie end to end in the files, beside an index of
offsets (134 MB for 64 x 64 units) that follows from the grid: it is set aside on reading and computed on writing.

Detectors and segmenters hold the encoder behind a prefix, and heads of the frameworks that trained them; what is not
built here keeps its names behind `detector.` and `segmenter.`, so that a file goes in and out whole. The names without
a prefix may be those of such an encoder too.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

from mimkit.errors import DataError
from mimkit.ops.relative import offset_index, table_grid
from mimkit.zoo.adapt import exact_root
from mimkit.zoo.mae import BLOCK as TRANSFORMER
from mimkit.zoo.mae import CLASSIFIER, DECODER_ENDS
from mimkit.zoo.rules import Aside, Family, Rule, Transform

PARTS = ("conv1", "conv2", "mlp.fc1", "mlp.fc2")  # 1 x 1 convolutions of a convolution block
TABLE, INDEX = "relative_position_bias_table", "relative_position_index"
INDEX_WORDS = "indices of relative positions, which are computed"
DETECTOR = ("detector.", "the heads of a detector")
SEGMENTER = ("segmenter.", "the heads of a segmenter")
NECK = ("neck.", "the neck of a detector or segmenter")
SHARED = (("windowed_rel_pos_bias", "windowed"), ("global_rel_pos_bias", "whole"))

POINTWISE = Transform(
    lambda parts: parts[0].reshape(parts[0].shape[:2]), lambda ours, _: [ours[:, :, None, None]]
)


def _unfolded(parts: list[Tensor]) -> Tensor:
    """((2s - 1)^2, H) -> (2s - 1, 2s - 1, H); a table of another count keeps its form until its grid is known."""
    table = parts[0]
    side = exact_root(table.shape[0])
    return table.unflatten(0, (side, side)) if side and side % 2 else table


OFFSETS = Transform(_unfolded, lambda ours, _: [ours.flatten(0, -2)])


def with_indices(published: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The index that stands beside each table in the published files, by its name.

    Raises DataError for a table whose grid cannot be told.
    """
    names = [name for name in published if name.endswith(TABLE)]
    tables = [table for name, table in ours.items() if name.endswith(".table")]  # in the same order
    made = {}
    for name, table in zip(names, tables, strict=True):
        if table.ndim < 3:
            raise DataError(
                f"{name} has {table.shape[0]} rows, which no square grid has; open the model with `mimkit.load` and "
                "export that."
            )
        made[name.replace(TABLE, INDEX)] = offset_index(table_grid(table), table.device)
    return made


def _encoder(root: str) -> tuple[list[Rule], tuple[Aside, ...]]:
    """The encoder behind `root`, in any form, and what stands beside its tables."""
    same = ["pos_embed", *(f"patch_embed{i}.{part}.{{p}}" for i in (1, 2, 3) for part in ("proj", "norm"))]
    same += ["patch_embed4.{p}", *(f"blocks3.{{i}}.{x}" for x in TRANSFORMER)]
    rules = []
    for blocks in ("blocks1.{i}.", "blocks2.{i}."):
        biases = [f"{x}.bias" for x in PARTS]
        same += [f"{blocks}{x}" for x in ("norm1.{p}", "norm2.{p}", "attn.{p}", *biases)]
        rules += [
            Rule((f"{root}{blocks}{x}.weight",), f"encoder.{blocks}{x}.weight", POINTWISE) for x in PARTS
        ]
    rules += [Rule((root + name,), f"encoder.{name}") for name in same]
    block, ours = f"{root}blocks3.{{i}}.", "encoder.blocks3.{i}."
    rules += [Rule((f"{block}gamma_{n}",), f"{ours}ls{n}.gamma") for n in (1, 2)]
    rules += [
        Rule((f"{block}attn.rel_pos_{axis}",), f"{ours}relative.{name}")
        for axis, name in (("h", "rows"), ("w", "columns"))
    ]
    rules.append(Rule((f"{block}attn.{TABLE}",), f"{ours}relative.table", OFFSETS))
    rules += [
        Rule((f"{root}{theirs}.{TABLE}",), f"encoder.relative.{kind}.table", OFFSETS)
        for theirs, kind in SHARED
    ]
    places = [f"{block}attn", *(root + theirs for theirs, _ in SHARED)]
    return rules, tuple(Aside(f"{place}.{INDEX}", INDEX_WORDS) for place in places)


def _pyramid(root: str) -> list[Rule]:
    """The simple pyramid (`tasks.necks.SimplePyramid`): published places of each level -> our parts."""
    rules = []
    for level, ups, lateral in ((2, (0, 3), 4), (3, (0,), 1), (4, (), 0), (5, (), 1)):
        theirs, ours = f"{root}simfp_{level}.", f"neck.levels.{level - 2}."
        rules += [Rule((f"{theirs}{place}.{{p}}",), f"{ours}up.{i}.{{p}}") for i, place in enumerate(ups)]
        rules += [
            Rule((f"{theirs}{lateral}.weight",), f"{ours}lateral.weight", POINTWISE),
            Rule((f"{theirs}{lateral}.norm.{{p}}",), f"{ours}lateral_norm.{{p}}"),
            Rule((f"{theirs}{lateral + 1}.weight",), f"{ours}output.weight"),
            Rule((f"{theirs}{lateral + 1}.norm.{{p}}",), f"{ours}output_norm.{{p}}"),
        ]
    return [*rules, Rule((f"{root}simfp_2.1.{{p}}",), "neck.levels.0.norm.{p}")]


def _coarser(root: str) -> list[Rule]:
    """The last level of the segmenter (`tasks.necks.Coarser`)."""
    return [
        Rule((f"{root}fpn.0.{{p}}",), "neck.conv.{p}"),
        Rule((f"{root}fpn.1.{{rest}}",), "neck.norm.{rest}"),
    ]


def _published() -> Family:
    rules, aside = _encoder("")
    for place, published in enumerate(("stage1_output_decode", "stage2_output_decode")):
        rules.append(Rule((f"{published}.{{p}}",), f"fusion.down.{place}.{{p}}"))
    rules += [Rule(("norm.{p}",), "fusion.norm.{p}"), Rule(("mask_token",), "decoder.mask_token")]
    rules += [Rule((f"decoder_{x}",), f"decoder.{x}") for x in DECODER_ENDS]
    rules += [Rule((f"decoder_blocks.{{i}}.{x}",), f"decoder.blocks.{{i}}.{x}") for x in TRANSFORMER]
    return Family("MCMAE names", (*rules, *CLASSIFIER, *_coarser("")), aside, computed=with_indices)


def _kept(part: str, *names: str) -> list[Rule]:
    return [Rule((f"{name}.{{rest}}",), f"{part}{name}.{{rest}}") for name in names]


def _detector(name: str, root: str, neck: list[Rule]) -> Family:
    rules, aside = _encoder(root)
    heads = _kept(DETECTOR[0], "proposal_generator", "roi_heads")
    return Family(name, (*rules, *neck, *heads), aside, computed=with_indices)


def _segmenter() -> Family:
    rules, aside = _encoder("backbone.")
    heads = _kept(SEGMENTER[0], "decode_head", "auxiliary_head")
    neck = _coarser("backbone.")
    return Family("MCMAE's segmenter", (*rules, *neck, *heads), aside, "state_dict", with_indices)


PUBLISHED = _published()
FPN = [Rule(("backbone.fpn_{rest}",), f"{DETECTOR[0]}fpn_{{rest}}")]
FAMILIES = [
    PUBLISHED,
    _detector("MCMAE's detector with a pyramid of all levels", "backbone.bottom_up.", FPN),
    _detector("MCMAE's detector after ViTDet", "backbone.net.", _pyramid("backbone.")),
    _detector("the backbone of MCMAE's detector after ViTDet", "net.", _pyramid("")),
    _segmenter(),
]


def form_of(names: Iterable[str]) -> str | None:
    """The form (`encoders.mcmae_forms`) of the encoder with these names, ours; None where they are no MCMAE."""
    known = list(names)
    if not any(name.startswith("encoder.blocks3.") for name in known):
        return None
    signs = (
        ("encoder.relative.", "detection"),
        (".relative.rows", "vitdet"),
        (".relative.table", "segmentation"),
    )
    return next((form for sign, form in signs if any(sign in name for name in known)), "classifier")
