"""Means of scores with their intervals, Markdown tables and histograms.

Every aggregate states over how many values it is and how many are missing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

RESAMPLES = 10_000
INTERVALS = "bootstrap; Wilson's for shares of yes and no"
_NORMAL_95 = 1.959964  # quantile 0.975 of the normal distribution
_RESAMPLES_AT_ONCE = 1000


def bootstrap_interval(
    values: np.ndarray,
    rng: np.random.Generator,
    *,
    coverage: float = 0.95,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Bootstrap percentile interval (low, high) of the mean of values (n,), n > 0 (Efron 1979).

    `coverage` in (0, 1) is the interval's probability. Raises ValueError for other shapes.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"a bootstrap needs (n,) values with n > 0, got {values.shape}")
    parts = [
        min(_RESAMPLES_AT_ONCE, resamples - start)
        for start in range(0, resamples, _RESAMPLES_AT_ONCE)
    ]
    means = np.concatenate(
        [values[rng.integers(len(values), size=(part, len(values)))].mean(1) for part in parts]
    )
    low, high = np.quantile(means, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """95 % interval (low, high) of a share of `count` > 0 trials (Wilson 1927).

    A bootstrap of values that are all equal has no width, and says too much.
    """
    if not 0 <= successes <= count or count < 1:
        raise ValueError(f"a share needs 0 <= successes <= count > 0, got {successes} of {count}")
    z2 = _NORMAL_95**2 / count
    share = successes / count
    middle = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(share * (1 - share) * z2 + z2**2 / 4) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def aggregate(values: Sequence[float | None], seed: int = 0) -> dict[str, float | int | None]:
    """Count, missing, mean, its 95 % interval (low, high), median, p5 and p95.

    The interval is a bootstrap's, and Wilson's where all values are bools: their mean is a share.
    None is a missing value: counted, not averaged. Raises ValueError for NaN and infinity: a score
    that is not defined is None.
    """
    present = np.array([v for v in values if v is not None], dtype=np.float64)
    if not np.isfinite(present).all():
        raise ValueError(
            f"{int((~np.isfinite(present)).sum())} of {len(present)} values to aggregate are NaN "
            "or infinite"
        )
    counts = {"count": len(present), "missing": len(values) - len(present)}
    if len(present) == 0:
        return counts | dict.fromkeys(("mean", "low", "high", "median", "p5", "p95"))
    if all(isinstance(v, bool | np.bool_) for v in values if v is not None):
        low, high = wilson_interval(int(present.sum()), len(present))
    else:
        low, high = bootstrap_interval(present, np.random.default_rng(seed))
    p5, median, p95 = np.quantile(present, [0.05, 0.5, 0.95]).tolist()
    return counts | {
        "mean": float(present.mean()),
        "low": low,
        "high": high,
        "median": median,
        "p5": p5,
        "p95": p95,
    }


def cell(value: dict, form: str = ".3f") -> str:
    """Text of an aggregate, such as 0.123 [0.100, 0.140], or "none" where nothing was measured."""
    if value["mean"] is None:
        return "none"
    return f"{value['mean']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def histograms(
    values: dict[str, Sequence[float]],
    path: Path,
    bins: int = 30,
    logarithmic: Collection[str] = (),
) -> None:
    """Saves an image with one histogram for each named list of values, the mean marked.

    Names in `logarithmic` have a logarithmic axis.
    """
    # not pyplot, which needs a display and keeps global state
    from matplotlib.figure import Figure

    columns = min(3, len(values))
    rows = math.ceil(len(values) / columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, numbers) in zip(axes, values.items(), strict=False):
        edges: int | np.ndarray = bins
        if name in logarithmic:
            edges = np.geomspace(np.min(numbers), np.max(numbers), bins + 1)
            axis.set_xscale("log")
        axis.hist(numbers, bins=edges, color="#4c72b0")
        axis.axvline(np.mean(numbers), color="#c44e52", label=f"mean {np.mean(numbers):.4g}")
        axis.set(title=f"{name}, {len(numbers):,} shapes", ylabel="shapes")
        axis.legend()
    for axis in axes[len(values) :]:
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
