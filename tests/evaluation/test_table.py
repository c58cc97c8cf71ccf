"""The table that people read: values by runs, and how they were measured, once."""

from __future__ import annotations

from typing import Any

import pytest

from ray_gen.evaluation.scores import Score, Scores
from ray_gen.evaluation.table import table


def of_samples(name: str, value: float, run: str, spread: float | None = None, **own: Any) -> Score:
    generated = {"run": run, "weights": "ema", "images": 100}
    reference = {"data": "mnist5k", "split": "train", "images": 100}
    return Score(name, value, spread, {"generated": generated, "reference": reference, **own})


def run(name: str, *more: Score, without: tuple[str, ...] = ()) -> tuple[str, Scores]:
    fid = of_samples("fid", 12.345678, name, extractor="net", warning="biased: few images")
    kid = of_samples("kid", 0.5, name, 0.0123, extractor="net", subsets=10)
    patches = of_samples("sliced_wasserstein", 4.0, name, unit="10^-3", patches_of_an_image=128)
    return name, Scores((fid, kid, patches, *more), without)


ELBO = Score("elbo", -100.0, 1.5, {"unit": "nats", "images": 20, "data": "mnist5k"})


def test_a_row_is_a_value_and_a_column_a_run() -> None:
    lines = table([run("a"), run("b", ELBO)]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:6]]
    assert cells[0] == ["", "a", "b"]
    assert cells[2] == ["fid ↓", "12.346", "12.346"]
    assert cells[3] == ["kid ↓", "0.500 ± 0.012", "0.500 ± 0.012"]
    assert cells[4] == ["sliced_wasserstein ↓ (10^-3)", "4", "4"]
    assert cells[5] == ["elbo ↑ (nats)", "", "-100.0 ± 1.5"]
    assert len({len(line) for line in lines[:6]}) == 1  # they stand below each other
    assert set(lines[1]) == {"|", "-", ":"}


@pytest.mark.parametrize(
    ("value", "spread", "cell"),
    [
        (12.345678, None, "12.346"),
        (12.345678, 0.12, "12.35 ± 0.12"),
        (-545.15, 0.045, "-545.15 ± 0.045"),
        (-545.15, 45.3, "-545 ± 45"),
        (0.014089, 0.0014, "0.0141 ± 0.0014"),
        (1.0, 0.0996, "1.00 ± 0.10"),
        (-0.02, 1.5, "0.0 ± 1.5"),
        (0.0, 0.00015, "0.0000 ± 0.00015"),
        (12345.6, 1234.5, "12300 ± 1200"),
        (1.23456, 1e-6, "1.2346 ± 0.0000010"),
        (1.23456e-9, 2.5e-11, "1.235e-09 ± 2.5e-11"),
        (3.0, 0.0, "3 ± 0"),
    ],
)
def test_a_value_has_no_more_digits_than_its_spread_allows(
    value: float, spread: float | None, cell: str
) -> None:
    score = of_samples("fid", value, "a", spread)
    row = table([("a", Scores((score,)))]).splitlines()[2]
    assert row.split("|")[2].strip() == cell


def test_what_all_have_in_common_is_told_once() -> None:
    text = table([run("a"), run("b", ELBO)])
    assert text.count("reference (data mnist5k, split train, images 100)") == 1
    assert text.count("weights ema") == 1
    assert "- a: generated run a" in text and "- b: generated run b" in text
    assert text.count("- fid, kid: extractor net") == 1
    assert text.count("- fid: biased: few images") == 1
    assert text.count("- likelihood: ") == 1


def test_lines_name_the_metrics_that_they_are_of() -> None:
    """Reconstructions have no likelihood."""

    def of_originals(name: str, **own: Any) -> Score:
        held_out = {"data": "mnist5k", "split": "held_out", "images": 20}
        return Score(name, 1.0, None, {"originals": held_out, **own})

    latents = (of_originals("latent_std", unit="of z"), of_originals("latent_scaling"))
    scores = (of_originals("psnr", unit="dB"), of_originals("ssim"), *latents)
    text = table([("a", Scores(scores))])
    assert "likelihood" not in text
    assert "- psnr, ssim, latents: originals (data mnist5k, split held_out, images 20)" in text
    text = table([("a", Scores((*scores, ELBO)))])
    assert "- psnr, ssim, latents: originals (" in text and "- likelihood: unit nats" in text


def test_what_differs_between_runs_stands_under_each() -> None:
    """Values of different extractors do not compare, and a reader must see it."""
    ours = (
        of_samples("fid", 1.0, "a", extractor="net"),
        of_samples("kid", 1.0, "a", extractor="net"),
    )
    theirs = of_samples("fid", 2.0, "b", extractor="other"), of_samples("patches", 1.0, "b")
    text = table([("a", Scores((*ours, of_samples("patches", 1.0, "a")))), ("b", Scores(theirs))])
    assert "- a, fid, kid: extractor net" in text and "- b, fid: extractor other" in text
    alike = table([run("x/best"), run("y/best")])
    assert "- x/best: generated run x/best" in alike and "- y/best: generated run y/best" in alike


def test_runs_of_one_name_keep_their_protocols() -> None:
    text = table([run("a"), ("a", run("b")[1])])
    assert "- a: generated run a" in text and "- a: generated run b" in text


def test_entries_of_one_metric_that_differ_between_runs_are_told() -> None:
    def of(net: str, neighbours: int, share: float) -> Scores:
        lpips = Score("lpips", 0.2, None, {"originals": {"data": "x"}, "network": net})
        own = {"neighbours": neighbours, "share": share, "list": [share]}
        precision = of_samples("precision", 0.5, "a", extractor="net", **own)
        return Scores((lpips, precision, of_samples("fid", 2.0, "a", extractor="net")), ())

    text = table([("a", of("alex", 3, 0.25)), ("b", of("vgg", 5, 0.5))])
    for part in ("network alex", "network vgg", "neighbours 3", "neighbours 5"):
        assert part in text
    assert "share" not in text and "list" not in text  # results
    alike = table([("a", of("alex", 3, 0.25)), ("b", of("alex", 3, 0.5))])
    assert "neighbours" not in alike


def test_only_verbose_tells_what_is_a_metrics_own() -> None:
    runs = [run("a"), run("b")]
    short, long = table(runs), table(runs, verbose=True)
    assert "subsets 10" not in short and "patches of an image" not in short
    assert "kid: extractor net, subsets 10" in long
    assert "sliced_wasserstein: unit 10^-3, patches of an image 128" in long


def test_what_was_left_out_is_one_line() -> None:
    why = "fid, kid: there are no weights"
    text = table([run("a", without=(why,)), run("b", without=(why,))])
    assert [line for line in text.splitlines() if "left out" in line] == [f"- left out: {why}"]


def test_a_score_that_no_metric_of_ours_has_stands_where_it_came() -> None:
    mine = of_samples("mine", 1.0, "a")
    assert [line.split()[1] for line in table([run("a", mine)]).splitlines()[2:6]] == [
        "fid",
        "kid",
        "sliced_wasserstein",
        "mine",
    ]
    assert table([("a", Scores(()))]).startswith("|")
