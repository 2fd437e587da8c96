"""What every command of the project does around its own work."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it


def command(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """Decorates the main function of a script or command.

    Threads of torch that have nothing to do sleep instead of spinning, unless the environment says
    otherwise; torch must not be loaded yet. The console shows a character that it cannot print as
    an escape. Ctrl-C ends in one line and the exit code 130.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        print_everything()
        try:
            return main(argv)
        except KeyboardInterrupt:
            print("\ninterrupted; files that are written are whole", file=sys.stderr)
            return INTERRUPTED

    return run


def print_everything() -> None:
    """Makes stdout and stderr print an escape for each character that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        # A stream of a test has no such method; one whose file was exchanged below it cannot seek.
        with contextlib.suppress(AttributeError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
