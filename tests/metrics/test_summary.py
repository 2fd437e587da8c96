import numpy as np
import pytest

from tar3d.metrics.summary import (
    aggregate,
    bootstrap_interval,
    cell,
    histograms,
    markdown_table,
    wilson_interval,
)


def test_bootstrap_interval_has_the_standard_error_of_the_mean():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = bootstrap_interval(values, np.random.default_rng(1))
    expected = 1.96 * values.std() / 20
    assert (values.mean() - low, high - values.mean()) == pytest.approx(
        (expected, expected), rel=0.1
    )
    assert bootstrap_interval(np.ones(5), np.random.default_rng(1)) == (1.0, 1.0)
    with pytest.raises(ValueError, match="n > 0"):
        bootstrap_interval(np.empty(0), np.random.default_rng(1))


@pytest.mark.parametrize(
    "successes, count, low, high",  # Wilson's intervals, as statsmodels gives them
    [(17, 17, 0.8157, 1.0), (0, 20, 0.0, 0.1611), (8, 10, 0.4902, 0.9433)],
)
def test_shares_have_the_interval_of_wilson(successes, count, low, high):
    assert wilson_interval(successes, count) == pytest.approx((low, high), abs=1e-4)
    values = [True] * successes + [None] + [False] * (count - successes)
    a = aggregate(values)
    assert (a["low"], a["high"], a["missing"]) == (*wilson_interval(successes, count), 1)
    numbers = aggregate([float(v) for v in values if v is not None])
    assert (numbers["low"], numbers["high"]) != (a["low"], a["high"]), "a bootstrap's"


def test_an_aggregate_says_over_how_many_values_it_is():
    a = aggregate([1.0, None, 3.0, 8.0, None])
    assert (a["count"], a["missing"], a["mean"], a["median"]) == (3, 2, 4.0, 3.0)
    assert (
        a["low"] < 4 < a["high"]
        and a["p5"] == pytest.approx(1.2)
        and a["p95"] == pytest.approx(7.5)
    )
    assert aggregate([1.0, 3.0, 8.0]) == aggregate([1.0, 3.0, 8.0])


def test_nothing_measured_is_none_and_never_zero():
    a = aggregate([None, None])
    assert (a["count"], a["missing"], a["mean"], a["median"]) == (0, 2, None, None) and cell(
        a
    ) == "none"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="1 of 2 values to aggregate are NaN or infinite"):
        aggregate([1.0, bad])


def test_tables_and_histograms(tmp_path):
    assert markdown_table(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]
    values = {"chamfer": [0.1, 0.2, 0.2], "iou": [0.5, 0.6, 0.9], "x": [1.0], "y": [2.0]}
    histograms(values, tmp_path / "deep" / "h.png")
    histograms(values, tmp_path / "log.png", logarithmic=["chamfer"])
    assert (tmp_path / "log.png").read_bytes() != (tmp_path / "deep" / "h.png").read_bytes()
    assert (tmp_path / "deep" / "h.png").stat().st_size > 5000
