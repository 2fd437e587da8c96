"""Items spread over a list, for what shows a few of many; loads no torch."""

import numpy as np


def spread(length: int, count: int) -> list[int]:
    """At most `count` different indices, spread evenly over 0..length-1.

    Ids sort by category, so the first ones would be of one category.
    """
    return np.unique(np.linspace(0, length - 1, min(count, length)).astype(int)).tolist()
