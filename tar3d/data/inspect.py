"""Checks a data set against docs/data.md, and draws some of its shapes:

    python -m tar3d.data.inspect DATA

Every file is checked: keys, dtypes, shapes and ranges, tables against files, views against cameras.
The first violation is printed with file and key, all are listed in inspect.csv, and the exit code
is 1 if there are any. Shapes spread evenly over the ids, and those with violations, are drawn:
<id>.ply has the query points, vermilion inside and blue outside, <id>.png the surface points over
the views, which shows a wrong frame at once. index.md has the statistics and links to the rest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d.folders import probe_output
from tar3d.runtime import command, command_parser, positive_int

if TYPE_CHECKING:
    import argparse


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """The parsed command line, and the parser for errors that are found later."""
    parser = command_parser(__doc__, prog="python -m tar3d.data.inspect")
    parser.add_argument("data", type=Path, help="data set folder to check")
    parser.add_argument(
        "--out", type=Path, help="folder for the findings and drawings (default: DATA/inspect)"
    )
    parser.add_argument(
        "--limit",
        type=positive_int,
        metavar="N",
        help="check only N shapes, spread evenly over the ids, to be done sooner (default: all)",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=16,
        metavar="K",
        help="shapes to draw besides those with violations (default: 16)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="processes that check shapes at the same time (default: all cores)",
    )
    return parser.parse_args(argv), parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code, 1 if there are violations."""
    args, parser = parse_arguments(argv)
    from tar3d.data.validate.inspect import inspect

    out = args.out or args.data / "inspect"
    try:
        probe_output(out, "--out")
        problems = inspect(
            args.data, out, limit=args.limit, images=args.pictures, workers=args.workers
        )
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    violations = [p for p in problems if not p.warning]
    if violations:
        print(f"first violation: {violations[0]}")
    num_warnings = len(problems) - len(violations)
    print(f"{len(violations)} violations, {num_warnings} warnings: {out / 'index.md'}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
