"""Makes the procedural data set: meshes, views and captions of chairs, cars, mugs and the like.

    python -m tar3d.data.toy --out data/toy --num 2000 --seed 0

It writes meshes/<id>.glb, views/<id>/<k>.png with cameras.json, captions.csv (up to four a shape,
the first names everything), manifest.csv (every parameter) and splits.json. The same seed gives the
same bytes with any number of processes, and shape i is the same in a set of any size. An
interrupted or smaller set is completed; one made with other settings is refused.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d import config as configuration
from tar3d.config import ToyConfig
from tar3d.config.flags import seed_number
from tar3d.folders import probe_output
from tar3d.runtime import command, command_parser

if TYPE_CHECKING:
    import argparse


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """The parsed command line, and the parser for errors that are found later."""
    parser = command_parser(__doc__, prog="python -m tar3d.data.toy")
    parser.add_argument("--out", type=Path, required=True, help="data set folder to write")
    parser.add_argument(
        "--num", type=int, default=2000, help="number of shapes (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=seed_number, default=0, help="gives other shapes (default: %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="processes that make shapes at the same time (default: all cores)",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings of the views, as in views.count=2 views.size=64; views.count=0 for none",
    )
    return parser.parse_intermixed_args(argv), parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args, parser = parse_arguments(argv)
    from tar3d.data.toy.make_toy import make_toy_data

    try:
        views = configuration.load(ToyConfig, None, args.overrides).views
        probe_output(args.out, "--out")
        make_toy_data(args.out, args.num, args.seed, views if views.count else None, args.workers)
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    print(
        f"{args.num} shapes of seed {args.seed} in {args.out}; "
        f"next: python -m tar3d.data.make_samples {args.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
