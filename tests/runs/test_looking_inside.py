"""Which findings of "Revealing the Dark Secrets of Masked Image Modeling" show in two tiny ViTs on 5000 images? One is
pre-trained by MAE, one is trained on labels, both read the same images; `make test-slow` prints what
docs/concepts/looking-inside.md says.

About a quarter of an hour on one core.
"""

import zipfile
from pathlib import Path

import numpy as np
import pytest

import mimkit
from mimkit.analysis.headline import thirds
from mimkit.analysis.inside import Inspection

SHARED = Path(__file__).parents[3] / "shared" / "data"
ENCODER = (  # nine layers, so that a third of them is the paper's "last three"
    "encoder.name=vit:64x9x4",
    "encoder.patch=4",
    "data.size=32",
    "data.workers=0",
    "train.precision=fp32",
    "log.writers=[]",
)
PRETRAIN = ("train.epochs=40", "method.decoder.width=64", "method.decoder.depth=1", "log.samples_every=1000")
SUPERVISED = (  # no mixing: in a dozen epochs a tiny model would learn nothing else
    "train.epochs=12",
    "train.batch_size=64",
    "train.ema=null",
    "optimiser.base_lr=4e-3",
    "optimiser.weight_decay=0.05",
    "schedule.warmup_epochs=1",
    "encoder.drop_path=0",
    "task.mixup=0",
    "task.cutmix=0",
    "task.smoothing=0",
    "task.randaugment=null",
    "data.crop_scale=[0.6,1]",
)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.skipif(not SHARED.exists(), reason="the data set cifar10 does not lie beside the checkout")
def test_what_two_tiny_models_show_of_the_findings(tmp_path: Path) -> None:
    with zipfile.ZipFile(SHARED / "cifar10" / "train.zip") as archive:
        archive.extractall(tmp_path)
    images = tmp_path / "train"
    masked, labelled = tmp_path / "masked", tmp_path / "labelled"
    mimkit.pretrain("mae_tiny", [*ENCODER, *PRETRAIN, f"data.path={images}", f"train.run={masked}"])
    settings = [*ENCODER, *SUPERVISED, f"data.path={images}", f"train.run={labelled}"]
    mimkit.finetune("scratch_vit_base", settings)
    found = mimkit.analyze([masked, labelled], images, out=tmp_path / "analysis", labels=True, images=1000)
    print()
    for line in found.lines():
        print(line)
    for finding, answers in findings(*found.study.models).items():
        print(f"{finding}: {answers}")
    assert all(model.attention is not None and model.cka is not None for model in found.study.models)
    assert found.report.stat().st_size < 12 * 2**20


def findings(masked: Inspection, labelled: Inspection) -> dict[str, str]:
    """Each finding of the paper, and whether it shows here, with the numbers."""
    made = {}
    nearest = [max(float(layer["relative_distance"].min()) for layer in heads(m)) for m in (masked, labelled)]
    rises = [
        thirds([float(layer["relative_distance"].mean()) for layer in heads(m)]) for m in (masked, labelled)
    ]
    kept = [thirds([float(layer["kl"].mean()) for layer in heads(m)]) for m in (masked, labelled)]
    lowest = [float(np.min(m.cka.values)) for m in (masked, labelled) if m.cka is not None]
    made["local heads in every layer of the masked model (Figure 1)"] = (
        f"{shows(nearest[0] <= 0.5)}: the most local head of the most global layer is at {nearest[0]:.2f} of the "
        f"uniform distance (supervised {nearest[1]:.2f})"
    )
    made["the supervised model looks further with depth (Figure 1)"] = (
        f"{shows(rises[1][1] - rises[1][0] >= 0.15)}: {rises[1][0]:.2f} -> {rises[1][1]:.2f} of the uniform distance, "
        f"first and last third (masked {rises[0][0]:.2f} -> {rises[0][1]:.2f})"
    )
    made["heads stay different in the deep layers of the masked model (Figure 4)"] = (
        f"{shows(kept[0][1] >= 0.5 * kept[0][0])}: KL {kept[0][0]:.2f} -> {kept[0][1]:.2f} nats (supervised "
        f"{kept[1][0]:.2f} -> {kept[1][1]:.2f})"
    )
    made["more so than in those of the supervised one (Figure 4)"] = (
        f"{shows(kept[0][1] > kept[1][1])}: {kept[0][1]:.2f} and {kept[1][1]:.2f} nats in the last third"
    )
    made["all layers of the masked model are alike (Figure 6)"] = (
        f"{shows(lowest[0] >= 0.9)}: lowest CKA {lowest[0]:.2f} (supervised {lowest[1]:.2f})"
    )
    return made


def heads(model: Inspection) -> list[dict[str, np.ndarray]]:
    assert model.attention is not None
    return [layer.by_head() for layer in model.attention.layers]


def shows(holds: bool) -> str:
    return "shows" if holds else "does not show"
