"""Finds the metric behind the name of a score, and so the direction in which it is better.

The name of a score is that of its metric, with a prefix (surface_, aligned_, floor_, or the image
that was compared, as in shaded_psnr), a suffix (_near, _fg, _clip), and the threshold in place of
"tau" (fscore@0.02). The tables below hold all metrics; a new one is one line in its table. Imports
no torch.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from tar3d.metrics.images import FEATURE_METRICS, IMAGE_MAPS, PIXEL_METRICS
from tar3d.metrics.metric import Metric, formulas
from tar3d.metrics.perceptual import CLIP_METRICS, LPIPS_METRICS
from tar3d.metrics.points import CLOUD_METRICS, DISTANCE_METRICS, NORMAL_METRICS
from tar3d.metrics.sets import SET_METRICS
from tar3d.metrics.volumes import VOLUME_METRICS


class _Family(NamedTuple):
    table: dict[str, Metric]
    prefixes: tuple[str, ...] = ("",)
    suffixes: tuple[str, ...] = ("",)


_SAMPLED = ("", "aligned_", "floor_")
_EXACT = ("surface_", "aligned_surface_")
_IMAGES = ("", *(f"{name}_" for name in IMAGE_MAPS))
_FAMILIES = (
    _Family(DISTANCE_METRICS, _SAMPLED + _EXACT),
    _Family(CLOUD_METRICS, _SAMPLED),
    _Family(NORMAL_METRICS, _SAMPLED + _EXACT),
    _Family(VOLUME_METRICS, ("", "aligned_"), ("", "_near")),
    _Family(SET_METRICS),
    _Family(PIXEL_METRICS, _IMAGES, ("", "_fg")),
    _Family(LPIPS_METRICS, _IMAGES, ("", "_fg")),
    _Family(CLIP_METRICS, suffixes=("", "_fg")),
    _Family(FEATURE_METRICS, suffixes=("", "_clip")),
)


def image_formulas() -> dict[str, str]:
    """Name -> formula and direction of every image score."""
    return {
        **formulas(PIXEL_METRICS, LPIPS_METRICS, CLIP_METRICS),
        "*_fg": "the same over the foreground: the pixels of the object in either image. SSIM is "
        "the mean of its map there, PSNR uses those pixels only, LPIPS is the mean of its map "
        "there, CLIP sees the square around them",
        **formulas(FEATURE_METRICS),
    }


def find_metric(score: str) -> Metric:
    """The metric that a score's name, such as "aligned_fscore@0.02", belongs to.

    Raises ValueError for a name that is in no table.
    """
    name = re.sub(r"@[\d.e+-]+$", "@tau", score)
    for table, prefixes, suffixes in _FAMILIES:
        for metric in table:
            if any(name == p + metric + s for p in prefixes for s in suffixes):
                return table[metric]
    names = sorted(name for family in _FAMILIES for name in family.table)
    raise ValueError(
        f"score {score!r} is in no table of tar3d/metrics, so nothing says which of two values is "
        f"better; the metrics there are {', '.join(names)}"
    )


def is_lower_better(score: str) -> bool:
    """True if the smaller of two values of `score` is the better one.

    Raises ValueError for a name that is in no table, and for a metric whose best value lies between
    its extremes.
    """
    better = find_metric(score).better
    if better not in ("lower", "higher"):
        raise ValueError(f"two values of {score!r} have no order: {better} is the best one")
    return better == "lower"
