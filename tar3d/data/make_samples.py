"""Samples meshes into training data, one .npz a shape:

    python -m tar3d.data.make_samples MESHES --out DATA --workers 2

MESHES is a folder of meshes (any depth), a data set folder with meshes/ in it, or a CSV table of
meshes; without --out the samples go into that same folder. Images, captions and splits beside the
meshes are used too (docs/data.md); views are rendered for shapes without images. An interrupted or
killed run continues where it stopped. A mesh or image that cannot be used, and a mesh that takes
more time or memory than is allowed, is listed in report.csv with the reason; all others are made,
and the exit code is 1. The samples of a shape depend on its id and the settings alone, not on the
order, the number of workers, or the machine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d import config as configuration
from tar3d.config import PrepareConfig
from tar3d.config.flags import seed_number
from tar3d.runtime import command, command_parser

if TYPE_CHECKING:
    import argparse

# Limits for one mesh. 9.9 M faces, about the most that `load_mesh` takes, need two minutes and
# 5 GB; text files need up to ten times their size, which may be 1 GiB.
SECONDS, GIGABYTES = 300.0, 12.0
REFUSED_SHOWN = 10  # on the screen; report.csv has all


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """The parsed command line, and the parser for errors that are found later."""
    parser = command_parser(__doc__, prog="python -m tar3d.data.make_samples")
    parser.add_argument(
        "source",
        type=Path,
        help="folder of meshes, data set folder, or CSV table with the columns id and file",
    )
    parser.add_argument(
        "--out", type=Path, help="data set folder to write (default: the folder of the source)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="meshes sampled at the same time (default: all cores, with --ray of all machines)",
    )
    parser.add_argument(
        "--seed", type=seed_number, default=0, help="draws other points and views (default: 0)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help="refuse a mesh that takes longer, so that none holds up the run "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--gigabytes",
        type=float,
        default=GIGABYTES,
        help="refuse a mesh that needs more memory, so that none ends the run; Linux only "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--shard-size",
        type=int,
        default=0,
        metavar="N",
        help="pack N shapes into a tar, for file systems that dislike millions of files "
        "(default: loose files)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="spread the work over the Ray cluster at this address; local starts one here",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings of PrepareConfig, as in surface_points=16384 views.count=8; "
        "views.count=0 renders no views",
    )
    return parser.parse_intermixed_args(argv), parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code, 1 if meshes or images were refused."""
    args, parser = parse_arguments(argv)
    from tar3d.data.prepare.make_samples import make_samples
    from tar3d.data.prepare.report import write_report

    try:
        config = configuration.load(PrepareConfig, None, args.overrides)
        out = args.out or (args.source.parent if args.source.is_file() else args.source)
        rows = make_samples(
            args.source,
            out,
            config.samples,
            seed=args.seed,
            workers=args.workers,
            views=config.views if config.views.count else None,
            shard_size=args.shard_size,
            seconds=args.seconds,
            gigabytes=args.gigabytes,
            ray=args.ray,
        )
        write_report(out)
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    refused = [r for r in rows if r["status"] != "ok"]
    for row in refused[:REFUSED_SHOWN]:
        print(f"refused: {row['id']}: {row['reason']}", file=sys.stderr)
    print(
        f"{len(rows) - len(refused)} of {len(rows)} meshes sampled into {out / 'samples'}; "
        f"{len(refused)} refused ({out / 'report.csv'})"
    )
    flawed = [r for r in rows if r["status"] == "ok" and r["reason"]]
    if flawed:
        print(
            f"images of {len(flawed)} shapes were left out, the first: {flawed[0]['reason']}; "
            f"to try again delete the shapes' folders in {out / 'views'}"
        )
    return 1 if refused or flawed else 0


if __name__ == "__main__":
    sys.exit(main())
