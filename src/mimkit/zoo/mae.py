"""The files of MAE (He et al. 2022) and of plain ViTs: published names, those of timm, those of transformers.

The published files hold the encoder alone (`mae_pretrain_vit_*.pth`), encoder and decoder (`*_full.pth`,
`mae_visualize_*.pth`) or a fine-tuned classifier (`mae_finetuned_*.pth`); timm's names are the same. transformers
has three forms: that of the hub's files, that of its modules since 5.0, and in files that 5.x saves the hub's form
with the decoder's blocks under `decoder_encoder`. Query, key and value are separate there.

Our names stand in three parts: `encoder.`, `decoder.`, and what a classifier adds, `fc_norm.` (behind a mean pooling)
and `head.` (a linear layer, or the batch norm and linear layer of a linear probe).
"""

from mimkit.zoo.rules import ROWS, Aside, Family, Rule

BLOCK = ("norm1.{p}", "attn.qkv.{p}", "attn.proj.{p}", "norm2.{p}", "mlp.fc1.{p}", "mlp.fc2.{p}")
LAYER_SCALES = ("ls1.gamma", "ls2.gamma")
DECODER_ENDS = ("embed.{p}", "pos_embed", "norm.{p}", "pred.{p}")

HEAD = "the classification head"
POOL_NORM = "the norm behind a mean pooling"

# Inner names of a block: ours -> those of transformers
HUB_BLOCK = {
    "norm1.{p}": ("layernorm_before.{p}",),
    "attn.qkv.{p}": tuple(f"attention.attention.{part}.{{p}}" for part in ("query", "key", "value")),
    "attn.proj.{p}": ("attention.output.dense.{p}",),
    "norm2.{p}": ("layernorm_after.{p}",),
    "mlp.fc1.{p}": ("intermediate.dense.{p}",),
    "mlp.fc2.{p}": ("output.dense.{p}",),
}
MODULE_BLOCK = {
    **HUB_BLOCK,
    "attn.qkv.{p}": tuple(f"attention.{part}_proj.{{p}}" for part in "qkv"),
    "attn.proj.{p}": ("attention.o_proj.{p}",),
    "mlp.fc1.{p}": ("mlp.fc1.{p}",),
    "mlp.fc2.{p}": ("mlp.fc2.{p}",),
}

# What the decoder of a known file predicts: True for pixels normalised per patch (fact sheet of the files)
NORM_PIX = {"mae_pretrain_": True, "mae_visualize_": False}


def _published() -> Family:
    rules = [
        Rule((name,), f"encoder.{name}")
        for name in ("cls_token", "pos_embed", "patch_embed.proj.{p}", "norm.{p}")
    ]
    rules += [Rule((f"blocks.{{i}}.{x}",), f"encoder.blocks.{{i}}.{x}") for x in BLOCK + LAYER_SCALES]
    rules += [Rule(("mask_token",), "decoder.mask_token")]
    rules += [Rule((f"decoder_{x}",), f"decoder.{x}") for x in DECODER_ENDS]
    rules += [Rule((f"decoder_blocks.{{i}}.{x}",), f"decoder.blocks.{{i}}.{x}") for x in BLOCK]
    return Family("MAE and timm names", (*rules, *CLASSIFIER))


def _hub(name: str, root: str, layer: str, decoder_layer: str, block: dict[str, tuple[str, ...]]) -> Family:
    """A form of transformers. root: what stands before an encoder name; layer, decoder_layer: the blocks."""
    rules = [
        Rule((root + "embeddings.cls_token",), "encoder.cls_token"),
        Rule((root + "embeddings.position_embeddings",), "encoder.pos_embed"),
        Rule((root + "embeddings.patch_embeddings.projection.{p}",), "encoder.patch_embed.proj.{p}"),
        Rule((root + "layernorm.{p}",), "encoder.norm.{p}"),
        Rule(("decoder.mask_token",), "decoder.mask_token"),
        *(Rule((f"decoder.decoder_{x}",), f"decoder.{x}") for x in DECODER_ENDS),
    ]
    for part, blocks in (("encoder", root + layer), ("decoder", decoder_layer)):
        rules += [
            Rule(tuple(f"{blocks}.{{i}}.{x}" for x in theirs), f"{part}.blocks.{{i}}.{ours}", ROWS)
            for ours, theirs in block.items()
        ]
    rules += [Rule(("classifier.{p}",), "head.{p}")]
    simmim = "the mask token and decoder of SimMIM"
    aside = (
        Aside(root + "pooler.{rest}", "the pooling layer"),
        Aside(root + "embeddings.mask_token", simmim),
        Aside("decoder.0.{p}", simmim),
    )
    return Family(name, tuple(rules), aside)


PARTS = ("encoder", "fusion", "decoder", "neck", "detector", "segmenter")  # of our names
CLASSIFIER = (Rule(("fc_norm.{p}",), "fc_norm.{p}"), Rule(("head.{rest}",), "head.{rest}"))
OWN = Family(
    "mimkit",
    (
        *(Rule((f"{part}.{{rest}}",), f"{part}.{{rest}}") for part in PARTS),
        *CLASSIFIER,
    ),
)
PUBLISHED = _published()
HUB = [
    _hub(name + where, root, layer, decoder_layer, block)
    for name, layer, decoder_layer, block in (
        ("transformers' hub files", "encoder.layer", "decoder.decoder_layers", HUB_BLOCK),
        ("files saved by transformers 5", "encoder.layer", "decoder.decoder_encoder.layer", HUB_BLOCK),
        ("transformers 5 modules", "layers", "decoder.decoder_layers", MODULE_BLOCK),
    )
    for root, where in (("vit.", ""), ("", ", encoder alone"))
]
FAMILIES = [PUBLISHED, *HUB, OWN]
