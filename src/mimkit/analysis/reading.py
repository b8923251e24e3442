"""What stands under each figure of the analysis page: what it shows, how it is read, and which finding of "Revealing
the Dark Secrets of Masked Image Modeling" (Xie et al. 2023) it belongs to, in our own words. Figure numbers are those
of the paper.
"""

from typing import NamedTuple

from mimkit.analysis.similarity import CKA


class Reading(NamedTuple):
    """paper: "" where the paper has nothing of the kind."""

    shows: str
    read: str
    paper: str = ""


DOTS = 40  # channels of a layer that are drawn, evenly by rank

READINGS = {
    "distance": Reading(
        "How far a patch looks in each head, on average: pixels between the centres of query and key, "
        "weighted by attention.",
        "Low dots are heads that look nearby, high ones look across the image; the line is the layer's "
        "mean, the dotted line attention that is the same everywhere.",
        "Figure 1: masked image modelling keeps local and global heads in every layer, with a mean as low "
        "as in the first layers of a supervised model; supervised and contrastive models look further with "
        "depth.",
    ),
    "relative-distance": Reading(
        "The same distance as a share of what uniform attention would have in the same image or window.",
        "1 is attention without any preference. Compare models of different input sizes or windows here, "
        "not in pixels.",
        "Figures 2b and 8: with shifted windows consecutive blocks zigzag, because shifted blocks see "
        "smaller regions at the edges.",
    ),
    "entropy": Reading(
        "How broadly a patch spreads its attention in each head.",
        "0 is one patch alone, the dotted line all patches alike. Spread dots are heads of different focus.",
        "Figure 3: in masked models focused and broad heads stand side by side in all layers; supervised "
        "models are focused below and broad above.",
    ),
    "kl": Reading(
        "How much the attention of a head differs from that of the other heads of its layer (Kullback-"
        "Leibler divergence).",
        "0 means that heads do the same thing twice. Look at the last layers.",
        "Figure 4: supervised models lose nearly all difference in the last three layers, masked models "
        "keep it; a masked model that was fine-tuned keeps some of it (Figures 8 to 11).",
    ),
    "attention-maps": Reading(
        "Where the middle patch (framed on the image) looks: a row a layer, a column a head.",
        "Black is no attention; each map has its own scale, and faint attention is lifted. Spots around the "
        "patch are local heads, even maps look at everything alike.",
        "Figures 1 and 4 as pictures: maps that differ along a row are what head diversity measures.",
    ),
    "kernel-distance": Reading(
        f"How far the kernel of a channel reaches from its centre, by the size of its weights ({DOTS} "
        "channels a layer, evenly by rank; the line is the mean of all).",
        "Low dots are channels that use the centre, high ones use the rim; dotted: a kernel of equal "
        "weights.",
        "Figure 12: the supervised RepLKNet is local in every layer, the masked one mixes local and global "
        "channels.",
    ),
    "kernel-entropy": Reading(
        "How evenly a kernel's weights are spread.",
        "0 is a single weight, the dotted line all weights alike.",
        "Figure 13: broad and focused channels stand side by side after masked pre-training.",
    ),
    "kernel-kl": Reading(
        "How much the kernels of a layer differ from each other, read as attention (Kullback-Leibler "
        "divergence).",
        "0 means that all channels filter alike.",
        "Figure 14: masked pre-training keeps channels different, most of all in deep layers.",
    ),
    "cka": Reading(
        "How alike any two layers of a model are in what they say about the images (linear CKA).",
        "1, bright, is the same up to rotation and scale; dark squares are layers that say different "
        "things. The diagonal is 1 by definition.",
        "Figure 6: all layers of a masked model are alike (about 0.9 to 1), those of a supervised one "
        "change with depth. MoCo v3 is like the masked model here, so CKA alone does not tell masked models "
        "apart.",
    ),
    "cka-between": Reading(
        "How alike each layer of one model and each layer of another are, on the same images.",
        "A bright band along the diagonal: both go the same way at the same depth. Numbers of layers may "
        "differ.",
    ),
    "effective-rank": Reading(
        "How many directions the features of a layer use (exponential of the entropy of the singular "
        "values), as a share of all.",
        "Near 0 the features have collapsed onto a few directions; 1 would use all of them alike.",
    ),
    "spectrum": Reading(
        "Singular values of a layer's features over its largest one.",
        "A line that falls at once means that a few directions say almost everything; a flat one uses all.",
    ),
    "frequencies": Reading(
        "How strong fine structure is against coarse structure in a layer's feature maps (Fourier "
        "amplitudes).",
        "High values keep edges and texture, low ones are smooth over the image.",
    ),
    "features": Reading(
        "Feature maps of some layers, and of the last one behind its norm: the first three principal "
        "components as red, green and blue, fitted over all images together.",
        "Equal colours are equal features: parts that share a colour across images mean the same to the "
        "model. Colours of different layers or models cannot be compared.",
    ),
    "probes": Reading(
        "Accuracy of k-NN and of a linear classifier on each layer's frozen features, cross-validated.",
        "The layer with the best features need not be the last one. Bands: deviation over the folds.",
    ),
    "gallery": Reading(
        "What the decoder paints into hidden patches at several shares of hidden ones; visible patches are "
        "put back.",
        "Made without looking at anything hidden. Blur is uncertainty and no fault: the loss asks for the "
        "mean.",
        "Figure 2: fine-tuning was best where hidden pixels lie 10 to 20 pixels from the nearest visible "
        "one.",
    ),
    "training": Reading(
        "The loss of each run, and its parts by the names that the method gives them, over steps.",
        "A part that falls faster in one run is learned more easily from its start.",
        "Figure 7: from masked pre-training a detector's box loss falls faster; from supervised pre-"
        "training its class loss is lower.",
    ),
}

BIASED = "Biased: for few examples in a block it may be far too high, near 1 even for layers with nothing in common."


def of_cka(name: str, found: CKA) -> Reading:
    """What stands under the heat maps `name` of CKA: as it was estimated, beside the paper only where that compares."""
    usual = READINGS[name]
    shows = f"{usual.shows} Here {found.how}."
    if found.kind.usual:
        return usual._replace(shows=shows)
    read = f"{BIASED} {usual.read}" if found.kind.biased else usual.read
    paper = usual.paper and (
        "Figure 6 asks the same; this page reads its findings from unbiased CKA of images, and values of another kind "
        "are not held against it."
    )
    return Reading(shows, read, paper)
