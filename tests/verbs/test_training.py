"""What the verbs that train have in common."""

import pytest

from mimkit.recipes import load
from mimkit.verbs.training import drawn


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"),
    [
        ("mae_tiny", (), ""),
        ("mae_tiny", ("encoder.drop_path=0.1",), "drop path"),
        ("finetune_vit_base", (), "drop path, Mixup, CutMix and random erasing"),
        ("finetune_vit_base", ("encoder.drop_path=0", "task.mixup=0", "task.erasing=0"), "CutMix"),
        ("linear_probe_vit_base", (), "batch norm"),
    ],
)
def test_what_other_micro_batches_draw_anew_is_named(
    recipe: str, overrides: tuple[str, ...], words: str
) -> None:
    assert drawn(load.resolve(recipe, overrides)) == words
