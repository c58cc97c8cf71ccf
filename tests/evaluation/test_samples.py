"""All metrics together: protocols, refusals, and changes that must not change a value."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.comparison import Comparison
from ray_gen.evaluation.extractors import Features
from ray_gen.evaluation.metric import Given
from ray_gen.evaluation.metrics import (
    ALL,
    BETTER,
    METRICS,
    OF_SAMPLES,
    metric_of,
    scores_of,
    without_weights,
)
from ray_gen.evaluation.scores import Score
from ray_gen.experiment.evaluation import Evaluation
from tests.evaluation.helpers import Made, Tiny, by_name, measured, pictures

OF_FEATURES = [name for name, of in METRICS.items() if of.of_samples and of.needs_weights]


def scores(metrics: list[str], generated: Made, reference: Made, **others: Any) -> dict[str, Score]:
    given = {"extractor": Tiny(), "world": World(), "kid_subset_size": 40, **others}
    return by_name(measured(metrics, generated, reference, **given))


def test_each_score_carries_its_protocol() -> None:
    generated = Made(pictures(120, 1), run="runs/a", weights="ema", seed=3)
    reference = Made(pictures(90, 2), "d", data="mnist5k", split="held_out")
    metrics = list(OF_SAMPLES)
    found = measured(
        metrics,
        generated,
        reference,
        extractor=Tiny(),
        training=Made(pictures(50, 3), split="train"),
        world=World(),
        seed=11,
        kid_subset_size=40,
    )
    assert [score.name for score in found] == metrics
    for score in found:
        protocol = json.loads(json.dumps(score.protocol))
        assert protocol["generated"] == {
            "run": "runs/a",
            "weights": "ema",
            "seed": 3,
            "images": 120,
            "size": "16x16",
        }
        assert protocol["reference"] == {
            "data": "mnist5k",
            "split": "held_out",
            "images": 90,
            "size": "16x16",
        }
        assert protocol["seed"] == 11
        through = METRICS[score.name].needs_weights
        assert (protocol.get("extractor") == "tiny") == through
        assert (protocol.get("extractor_weights") == "of the seed") == through
        assert ("resizing" in protocol) == through
        assert (score.spread is not None) == (score.name in ("kid", "inception_score"))
    assert by_name(found)["fid"].protocol["warning"].startswith("biased: FID falls with")
    assert by_name(found)["kid"].protocol["subset_size"] == 40


def test_names_of_metrics_and_of_their_values() -> None:
    assert without_weights(None) == ("sliced_wasserstein", "nearest_neighbour")
    assert metric_of("kl") == metric_of("likelihood") == "likelihood"
    assert metric_of("recall") == "recall"
    assert scores_of(["recall", "likelihood"])[:2] == ("recall", "elbo")
    names = [name for kind in ALL for name in kind.scores]
    assert len(names) == len({*names}) == len(BETTER)


def test_one_pass_over_each_set_serves_all_metrics() -> None:
    generated, reference = Made(pictures(120, 1)), Made(pictures(90, 2))
    training = Made(pictures(50, 3))
    scores(list(OF_SAMPLES), generated, reference, training=training)
    # The first image once more for its shape, and once more for the extractor's sizes.
    assert (generated.taken, reference.taken, training.taken) == (120 + 2, 90 + 1, 50 + 1)


def test_a_permutation_of_images_changes_nothing() -> None:
    metrics = ["fid", "precision", "recall", "density", "coverage", "nearest_neighbour"]
    sets = [pictures(count, seed) for seed, count in enumerate((120, 90, 70), 1)]
    orders = [torch.randperm(len(pixels)) for pixels in sets]
    plain, mixed = (
        scores(metrics, Made(fake), Made(real), training=Made(known))
        for fake, real, known in (sets, [s[o] for s, o in zip(sets, orders, strict=True)])
    )
    for name in metrics:
        assert mixed[name].value == pytest.approx(plain[name].value, rel=1e-6), name


def test_batches_change_nothing() -> None:
    generated, reference = Made(pictures(120, 1)), Made(pictures(90, 2))
    metrics = [*OF_FEATURES, "sliced_wasserstein"]
    small, large = (scores(metrics, generated, reference, batch_size=n) for n in (7, 500))
    for name in metrics:
        assert small[name].value == pytest.approx(large[name].value, rel=1e-4), name


def test_the_same_images_score_best() -> None:
    images = Made(pictures(150, 1))
    found = scores([*OF_FEATURES, "sliced_wasserstein"], images, images)
    assert found["fid"].value < 1e-10
    assert found["precision"].value == found["recall"].value == found["coverage"].value == 1.0
    assert found["sliced_wasserstein"].value == 0.0
    assert found["kid"].value <= 0.001


def test_samples_are_not_stretched_to_the_full_range() -> None:
    """Samples with a quarter of the contrast are worse than samples with that of the reference."""
    reference = pictures(200, 1)
    faint = ((reference.int() - 128) // 4 + 128).to(torch.uint8)
    first = scores(["fid"], Made(reference.flip(0)), Made(reference))["fid"].value
    assert scores(["fid"], Made(faint), Made(reference))["fid"].value > first + 0.01


def test_features_far_from_zero_lose_no_digits() -> None:
    """float32 features of 300 ± 0.1 keep 3 digits of their differences. The sums lose none."""
    generated, reference = Made(pictures(150, 1)), Made(pictures(150, 2))
    near, far = (
        scores(["fid"], generated, reference, extractor=Tiny(offset=offset))["fid"].value
        for offset in (0.0, 256.0)
    )
    assert far == pytest.approx(near, rel=1e-2)


def test_every_stage_of_progress_ends_at_its_total() -> None:
    told: list[tuple[int, int, str]] = []
    scores(
        list(OF_SAMPLES),
        Made(pictures(120, 1)),
        Made(pictures(90, 2)),
        training=Made(pictures(50, 3)),
        progress=lambda *news: told.append(news),
    )
    ends = {what: (done, total) for done, total, what in told}
    assert all(done == total for done, total in ends.values())
    assert {
        "generated images",
        "reference images",
        "training images",
        "comparisons of features",
    } <= ends.keys()


def without_logits(images: torch.Tensor) -> Features:
    return Features(images.float().mean((2, 3)))


class Blind(Tiny):
    """An extractor without logits."""

    def forward(self, images: torch.Tensor) -> Features:
        return without_logits(images)


COLOUR, GREY, DEEP = (pictures(60, 1, (channels, 16, 16)) for channels in (3, 1, 5))


@pytest.mark.parametrize(
    ("metrics", "change", "words"),
    [
        (["fod"], {}, r"no metric 'fod'; did you mean fid\?"),
        (["fid"], {"extractor": None}, r"evaluation\.features: fid .*sliced_wasserstein and near"),
        (["nearest_neighbour"], {}, r"evaluation\.metrics: nearest_neighbour .*trained on"),
        (["kid"], {"kid_subset_size": 61}, r"evaluation\.kid_subset_size: 61 .*at most 60"),
        (["kid"], {"kid_subsets": 0}, "kid_subsets"),
        (["kid"], {"kid_subset_size": 1}, r"evaluation\.kid_subset_size: subsets of 1 image"),
        (["recall"], {"neighbours": 60}, r"evaluation\.neighbours: 60 is not between 1 and 59"),
        (["density"], {"density_neighbours": 0}, "density_neighbours"),
        (["inception_score"], {"generated": COLOUR[:5]}, r"evaluation\.count: inception_score"),
        (
            ["sliced_wasserstein"],
            {name: pictures(60, 1, (3, 6, 20)) for name in ("generated", "reference")},
            r"sliced_wasserstein: images of 6x20 are smaller than its patches of 7x7; leave it out",
        ),
        (["fid"], {"generated": COLOUR[:1]}, r"evaluation\.count: at least two images"),
        (["fid"], {"reference": COLOUR[:0]}, r"evaluation\.reference: at least two images"),
        (["fid"], {"generated": GREY}, r"have 1 and the reference images 3 channels"),
        (["fid"], {"generated": DEEP, "reference": DEEP}, r"grey or RGB.* have 5 .*run:RUN"),
        (
            ["sliced_wasserstein"],
            {"reference": pictures(60, 1, (3, 16, 20))},
            r"are 16x16, the reference images 16x20 .*; set data\.image_size to 16",
        ),
        (["inception_score"], {"extractor": Blind()}, r"evaluation\.features: .*class scores"),
        (["fid"], {"generated": COLOUR.float()}, r"torch\.float32 .*quantised"),
        (["nearest_neighbour"], {"training": COLOUR[:0]}, "there are no training images"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    metrics: list[str], change: dict[str, Any], words: str
) -> None:
    others = dict(change)
    images = [Made(others.pop(name, COLOUR)) for name in ("generated", "reference")]
    if "training" in others:
        others["training"] = Made(others["training"])
    with pytest.raises((Refused, ValueError), match=words):
        scores(metrics, *images, **others)


def test_of_all_metrics_those_that_few_images_cannot_have_are_left_out() -> None:
    sets = [Made(pictures(4, seed, (3, 6, 6))) for seed in (1, 2)]
    sides = dict(zip(("generated", "reference"), sets, strict=True))
    given = Given(World(), sides, extractor=Tiny(), automatic=True)  # pyright: ignore
    compared = Comparison(list(METRICS), Evaluation(), given)
    for name in ("inception_score", "density", "sliced_wasserstein"):
        assert name not in compared.names and compared.without[name]
    assert {"fid", "kid", "precision"} <= {*compared.names}


def test_five_channels_can_be_compared_by_pixels() -> None:
    assert scores(["sliced_wasserstein"], Made(DEEP), Made(DEEP), extractor=None)


def test_a_metric_that_yields_other_values_than_it_declares_is_an_error(monkeypatch) -> None:
    images = Made(pictures(20, 1))

    def forgets_recall(self: Any, *embeddings: Any) -> Any:
        yield "precision", 1.0, None

    monkeypatch.setattr(METRICS["recall"], "compare", forgets_recall)
    with pytest.raises(ValueError, match=r"PrecisionRecall yields precision, .*precision, recall"):
        scores(["precision"], images, images)


def test_a_message_names_the_metric_that_was_asked_for() -> None:
    images = Made(pictures(20, 1))
    with pytest.raises(Refused, match=r"evaluation\.features: recall needs"):
        scores(["recall"], images, images, extractor=None)
