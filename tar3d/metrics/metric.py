"""An entry in a table of metrics: a name -> how the number is computed and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

Better = Literal["lower", "higher", "0.5"]
_DIRECTIONS: dict[Better, str] = {
    "lower": "lower is better",
    "higher": "higher is better",
    "0.5": "0.5 is best, 0 and 1 are worst",
}


def _measured_elsewhere(*_: object) -> Any:
    raise NotImplementedError("this metric has no function in its table")


@dataclass(frozen=True)
class Metric:
    """Definition in words, direction of a good value, and function that computes the number.

    Each table states what it hands over to the function; where a network computes the number there
    is none.
    """

    formula: str
    better: Better
    measure: Callable[..., Any] = _measured_elsewhere

    def describe(self) -> str:
        """The formula and the direction in one line."""
        return f"{self.formula}; {_DIRECTIONS[self.better]}"


def formulas(*tables: dict[str, Metric]) -> dict[str, str]:
    """Name -> description of every metric in `tables`, in their order."""
    return {name: metric.describe() for table in tables for name, metric in table.items()}
