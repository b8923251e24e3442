"""The automatic sentences: each rule on curves made for it, with its numbers, and silence where none applies."""

import numpy as np
import pytest

from mimkit import analysis
from mimkit.analysis.attention import AttentionStatistics, LayerAttention
from mimkit.analysis.similarity import CKA
from mimkit.analysis.verdicts import Finding, representation, spearman
from mimkit.errors import UserError

L, H, N = 12, 4, 40


def layer(
    number: int,
    distance: object = 0.9,
    entropy: object = 0.8,
    kl: float = 1.0,
    nmi: float = 0.3,
    mass: float = 1.0,
    shift: tuple[int, int] | None = None,
) -> LayerAttention:
    """A layer whose uniform distance and entropy are 1."""
    rng = np.random.default_rng(number)
    return LayerAttention(
        f"blocks.{number}.attn",
        np.broadcast_to(np.asarray(distance, dtype=float), H).copy(),
        np.broadcast_to(np.asarray(entropy, dtype=float), H).copy(),
        kl * (1 - np.eye(H)),
        np.full(H, nmi),
        np.full(H, mass),
        1.0,
        1.0,
        (14, 14),
        (16, 16),
        shift=shift,
        per_image={"kl": kl + 0.1 * rng.standard_normal(N)},
    )


def model(layers: list[LayerAttention], name: str = "M") -> AttentionStatistics:
    return AttentionStatistics(name, N, (224, 224), tuple(layers), np.arange(N))


def rules(layers: list[LayerAttention], similarity: CKA | None = None) -> dict[str, Finding]:
    return {found.rule: found for found in analysis.sentences(model(layers), similarity)}


def test_a_masked_model_is_local_everywhere_flat_and_diverse() -> None:
    found = rules([layer(i, np.linspace(0.3, 1, H), np.linspace(0.5, 1, H)) for i in range(L)])
    assert set(found) == {"local", "flat", "diverse_focus", "diversity_kept"}
    assert found["local"].numbers == pytest.approx({"nearest": 0.3, "highest_mean": 0.65})
    assert all(each.text.startswith("M: ") and each.text.endswith("(40 images).") for each in found.values())


def test_a_supervised_model_is_global_broad_and_alike_at_the_top() -> None:
    depth = np.linspace(0.4, 1, L)
    layers = [layer(i, depth[i], min(1, 0.5 + depth[i] / 2), kl=0.1 if i >= 9 else 1.0) for i in range(L)]
    found = rules(layers)
    assert set(found) == {"global", "broad", "diversity_lost"}
    assert found["global"].numbers["spearman"] == pytest.approx(1)
    assert found["diversity_lost"].numbers == pytest.approx({"layers": 3, "fall": 90})
    assert "last 3 layers" in found["diversity_lost"].text and "90 %" in found["diversity_lost"].text


def test_plain_and_shifted_windows_are_ranked_apart() -> None:
    zigzag = [0.4 + 0.04 * i + (0.3 if i % 2 == 0 else 0.0) for i in range(L)]
    shifts = [(4, 4) if i % 2 else (0, 0) for i in range(L)]
    found = rules([layer(i, zigzag[i], shift=shifts[i]) for i in range(L)])
    assert found["global"].numbers["spearman"] == pytest.approx(1)
    assert spearman(zigzag) < 1


def test_a_sink_of_attention_takes_the_place_of_what_rests_on_it() -> None:
    found = rules([layer(i, 0.3, mass=0.4 if i == 7 else 1.0) for i in range(L)])
    assert set(found) == {"trust"}
    assert "layer 8" in found["trust"].text and "0.40" in found["trust"].text


def test_collapse_names_its_layers() -> None:
    found = rules([layer(i, nmi=0.01 if i in (3, 4) else 0.3) for i in range(L)])
    assert "layers 4, 5" in found["collapse"].text
    found = rules([layer(i, nmi=0.01 if i != 2 else 0.3) for i in range(L)])
    assert f"layers 1, 2, 4 to {L} all" in found["collapse"].text


def test_diversity_is_not_called_kept_where_attention_has_collapsed() -> None:
    low = rules([layer(i, nmi=0.01 if i < 4 else 0.3) for i in range(L)])
    assert {"collapse", "diversity_kept"} <= set(low)
    high = rules([layer(i, nmi=0.01 if i == 9 else 0.3) for i in range(L)])
    assert "collapse" in high and "diversity_kept" not in high


def test_collapsed_attention_is_no_sign_of_what_the_paper_saw() -> None:
    sound = rules([layer(i, 0.9) for i in range(L)])
    assert sound["flat"].paper.startswith("masked image modelling")
    partly = rules([layer(i, 0.9, 0.95, nmi=0.01 if i == 2 else 0.3) for i in range(L)])
    assert partly["flat"].paper == "" and partly["broad"].paper == "supervised models, figure 3"
    wholly = rules([layer(i, 0.9, 0.95, nmi=0.01) for i in range(L)])
    assert {"flat", "broad", "collapse"} <= set(wholly)
    assert not any(each.paper for each in wholly.values())


def test_when_no_rule_fires_that_is_said() -> None:
    kl = [1.0] * 8 + [0.4, 1, 1, 1]  # neither lost nor kept
    rising = [layer(i, 0.6 + 0.02 * i, np.linspace(0.78, 0.8, H), kl[i]) for i in range(L)]
    assert set(rules(rising)) == {"none"}


def cka(values: np.ndarray, b: str = "M", estimator: str = "unbiased", examples: str = "images") -> CKA:
    names = tuple(f"blocks.{i}" for i in range(len(values)))
    return CKA("M", b, names, names, values, estimator, examples, N - 3, left_out=3)


@pytest.mark.parametrize(
    ("least", "rule"), [(0.95, "one_representation"), (0.5, "changes"), (0.75, "moderate")]
)
def test_cka_names_its_lowest_pair(least: float, rule: str) -> None:
    values = np.full((3, 3), 0.97)
    values[0, 2] = values[2, 0] = least
    found = rules([layer(i) for i in range(3)], cka(values))[rule]
    assert "layers 1 and 3" in found.text and found.numbers["least"] == pytest.approx(least)
    with pytest.raises(UserError, match="of two models"):
        rules([layer(0)], cka(values, "other"))


def test_thresholds_are_for_unbiased_cka_of_images_alone() -> None:
    values = np.full((3, 3), 0.97)
    usual = representation(cka(values))
    assert usual.rule == "one_representation" and usual.text.endswith("(37 images).")
    told = {
        (
            "biased",
            "images",
        ): "M: biased CKA is lowest, 0.97, between layers 1 and 2; the biased estimate may be",
        ("biased", "tokens"): "M: biased CKA of tokens is lowest",
        (
            "unbiased",
            "tokens",
        ): "M: CKA of tokens is lowest, 0.97, between layers 1 and 2; findings of the paper are",
        ("unbiased", "pooled"): "M: CKA of pooled tokens is lowest",
    }
    for (estimator, examples), text in told.items():
        found = representation(cka(values, estimator=estimator, examples=examples))
        assert found.text.startswith(text) and found.rule == "lowest_cka" and found.paper == ""
        assert ("too high" in found.text) == (estimator == "biased")
        assert found.numbers["least"] == pytest.approx(0.97)


def test_two_models_differ_where_the_interval_excludes_one() -> None:
    a, b = model([layer(i, kl=2.0) for i in range(L)], "A"), model([layer(i, kl=1.0) for i in range(L)], "B")
    found = analysis.compare(a, b)
    assert found.rule == "comparison" and found.numbers["ratio"] == pytest.approx(2, abs=0.05)
    assert found.numbers["low"] > 1 and "A keeps 2." in found.text
    assert analysis.compare(a, b) == found  # seeded
    same = analysis.compare(a, model([layer(i + 50, kl=2.0) for i in range(L)], "C"))
    assert same.rule == "no_difference"
    other = AttentionStatistics("D", N, (224, 224), b.layers, np.arange(N) + 1)
    with pytest.raises(UserError, match="different images"):
        analysis.compare(a, other)


def test_advice_on_masks_is_scaled_to_the_size_of_the_paper() -> None:
    assert "inside the band" in analysis.mask_advice(15.4, (192, 192)).text
    small = analysis.mask_advice(8.0, (96, 96))
    assert small.numbers["at_192"] == pytest.approx(16) and "16.0 px at 192: inside" in small.text
    assert "below the band" in analysis.mask_advice(5.0, (192, 192)).text
    assert "not defined" in analysis.mask_advice(float("nan"), (192, 192)).text


def test_ranks_share_their_place() -> None:
    assert spearman([1, 2, 3]) == pytest.approx(1) and spearman([3, 2, 1]) == pytest.approx(-1)
    assert spearman([2, 2, 2]) == 0 and spearman([1]) == 0
    assert spearman([1, 2, 2, 3]) == pytest.approx(0.9486832980505138)
