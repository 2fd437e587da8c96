"""Progress: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SECONDS_A_LINE = 30  # between two lines in a file
LINE_FORMAT = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class ProgressLines(tqdm):
    """The bar of a command whose output is no terminal: whole lines, and no carriage returns.

    A line is written every SECONDS_A_LINE, and at the end unless `leave` is False.
    """

    monitor_interval = 0  # no thread that draws bars again
    disable: bool

    def __init__(self, iterable: Iterable | None = None, **settings: Any) -> None:
        settings |= {"mininterval": SECONDS_A_LINE, "miniters": 1, "delay": SECONDS_A_LINE}
        super().__init__(iterable, bar_format=LINE_FORMAT, **settings)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # noqa: ARG002
        self.fp.write(f"{self if msg is None else msg}\n")
        self.fp.flush()
        return True

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:  # noqa: ARG002
        super().set_postfix_str(s, refresh=False)  # the next line shows it

    def clear(self, *_: Any, **__: Any) -> None:
        """Erases nothing: lines stay."""

    def close(self) -> None:
        if not self.disable:
            self.disable = True
            self._decr_instances(self)
            if self.leave:
                self.display()

    @classmethod
    def write(
        cls,
        s: str,
        file: IO | None = None,
        end: str = "\n",
        nolock: bool = False,  # noqa: ARG003
    ) -> None:
        print(s, file=file, end=end, flush=True)


def progress_bar(iterable: Iterable | None = None, **settings: Any) -> tqdm:
    """A bar with the settings of tqdm where stderr is a terminal, else `ProgressLines`."""
    return (tqdm if sys.stderr.isatty() else ProgressLines)(iterable, **settings)


def print_line(text: str, file: IO | None = None) -> None:
    """Prints a line (to stdout by default) while bars are shown, which it does not break."""
    (tqdm if sys.stderr.isatty() else ProgressLines).write(text, file=file or sys.stdout)


@contextmanager
def extraction_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """The `progress` callback of an extraction: a bar for each lattice, with rate and time left."""
    bar: tqdm | None = None

    def update(done: int, total: int) -> None:
        nonlocal bar
        if bar is None or total != bar.total or done < bar.n:
            if bar is not None:
                bar.close()
            bar = progress_bar(total=total, unit="cell", unit_scale=True, desc=name, leave=False)
        bar.update(done - bar.n)

    try:
        yield update
    finally:
        if bar is not None:
            bar.close()
