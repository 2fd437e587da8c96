"""Progress bars."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tqdm import tqdm


@contextmanager
def extraction_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """The `progress` callback of an extraction: a bar for each lattice, with rate and time left."""
    from tqdm import tqdm

    bar: tqdm | None = None

    def update(done: int, total: int) -> None:
        nonlocal bar
        if bar is None or total != bar.total or done < bar.n:
            if bar is not None:
                bar.close()
            bar = tqdm(total=total, unit="cell", unit_scale=True, desc=name, leave=False)
        bar.update(done - bar.n)

    try:
        yield update
    finally:
        if bar is not None:
            bar.close()
