"""The files of MCMAE / ConvMAE (Gao et al. 2022): published names become ours.

Published 1 x 1 convolutions are linear layers here; all other tensors keep their form. The fusion of the levels and the
norm behind it belong to the method here, so their names begin with `fusion.`.
"""

from mimkit.zoo.mae import BLOCK as TRANSFORMER
from mimkit.zoo.mae import CLASSIFIER, DECODER_ENDS
from mimkit.zoo.rules import Family, Rule, Transform

POINTWISE = Transform(
    lambda parts: parts[0].reshape(parts[0].shape[:2]), lambda ours, _: [ours[:, :, None, None]]
)
PARTS = ("conv1", "conv2", "mlp.fc1", "mlp.fc2")  # 1 x 1 convolutions of a convolution block


def _published() -> Family:
    same = ["pos_embed", *(f"patch_embed{i}.{part}.{{p}}" for i in (1, 2, 3) for part in ("proj", "norm"))]
    same += ["patch_embed4.{p}", *(f"blocks3.{{i}}.{x}" for x in TRANSFORMER)]
    rules = []
    for blocks in ("blocks1.{i}.", "blocks2.{i}."):
        same += [
            f"{blocks}{x}" for x in ("norm1.{p}", "norm2.{p}", "attn.{p}", *(f"{x}.bias" for x in PARTS))
        ]
        rules += [Rule((f"{blocks}{x}.weight",), f"encoder.{blocks}{x}.weight", POINTWISE) for x in PARTS]
    rules += [Rule((name,), f"encoder.{name}") for name in same]
    for place, published in enumerate(("stage1_output_decode", "stage2_output_decode")):
        rules.append(Rule((f"{published}.{{p}}",), f"fusion.down.{place}.{{p}}"))
    rules += [Rule(("norm.{p}",), "fusion.norm.{p}"), Rule(("mask_token",), "decoder.mask_token")]
    rules += [Rule((f"decoder_{x}",), f"decoder.{x}") for x in DECODER_ENDS]
    rules += [Rule((f"decoder_blocks.{{i}}.{x}",), f"decoder.blocks.{{i}}.{x}") for x in TRANSFORMER]
    return Family("MCMAE names", (*rules, *CLASSIFIER))


PUBLISHED = _published()
FAMILIES = [PUBLISHED]
