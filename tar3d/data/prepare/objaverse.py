"""Downloads Objaverse meshes by a list of uids, and writes the table that make_samples reads:

    python -m tar3d.data.objaverse UIDS.txt --out DIR
    python -m tar3d.data.make_samples DIR/objaverse.csv

UIDS.txt has one uid a line. The `objaverse` package downloads the GLBs into its cache (below
~/.objaverse), except those that are there; after an interruption run the command again. With
--local FOLDER nothing is downloaded: <uid>.glb is looked for at any depth of the folder. Captions
are the names of the objects, else their tags, from Objaverse's metadata; it is downloaded too or,
with --local, read from metadata/ beside glbs/ as in the cache. Uids without a mesh are listed in
DIR/missing.csv with the reason, all others are used, and the exit code is 1.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import os
import re
import socket
import sys
import time
import urllib.error
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tar3d.data.prepare.captions_from_names import clean_name
from tar3d.folders import probe_output
from tar3d.io import write_csv
from tar3d.runtime import command, command_parser, progress_bar

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator
    from types import ModuleType

# uids a call of the package, which reads its list of 800,000 paths (one second) in every call
GROUP = 16
# seconds before the second try; each further pause is twice as long
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
GIVE_UP = 20  # failures in a row after which the network is taken to be down
TAGS = 5  # at most so many tags become a caption
_GONE = (404, 410)  # HTTP status codes for which another try does not help
# errors of the network, and of reading a list that was cut off
_FAILURES = (OSError, http.client.HTTPException, EOFError, ValueError, zlib.error)

UNKNOWN = "Objaverse has no object with this uid"

T = TypeVar("T")


def read_uids(path: Path) -> list[str]:
    """The uids of a list, each once; comments (#) and blank lines are skipped.

    Raises ValueError for a list that cannot be read or is empty, and for a line that is no uid.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is not a readable list of uids ({e})") from e
    uids: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        uid = line.partition("#")[0].strip().removesuffix(".glb").lower()
        if uid and not re.fullmatch("[0-9a-f]{32}", uid):
            raise ValueError(
                f"{path}, line {number}: {line.strip()!r} is not a uid, "
                "which has 32 hexadecimal digits"
            )
        if uid:
            uids[uid] = None
    if not uids:
        raise ValueError(f"{path} lists no uids")
    return list(uids)


def find_local(uids: Iterable[str], folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """GLBs below `folder` by uid, and the reason for each uid without one."""
    if not folder.is_dir():
        raise ValueError(f"--local {folder} is not a folder")
    there = {
        file[:-4].lower(): Path(base, file)
        for base, _, files in os.walk(folder)
        for file in files
        if file.endswith(".glb")
    }
    found = {uid: there[uid] for uid in uids if uid in there}
    return found, {uid: f"{folder} holds no {uid}.glb" for uid in uids if uid not in there}


def download(
    uids: list[str], package: ModuleType, *, retries: int
) -> tuple[dict[str, Path], dict[str, str]]:
    """Downloads GLBs that are not in the cache; returns all by uid, and the reasons of failures.

    Raises ValueError when Objaverse's list of uids cannot be fetched.
    """
    cached = {p.stem: p for p in _cache(package).glob("glbs/*/*.glb")}
    found = {uid: cached[uid] for uid in uids if uid in cached}
    if len(found) == len(uids):
        return found, {}
    try:
        known = set(_fetch_index(package, package.load_uids, retries=retries))
    except _FAILURES as e:
        raise ValueError(
            f"the list of Objaverse's objects could not be fetched ({type(e).__name__}: {e})"
        ) from e
    reasons = {uid: UNKNOWN for uid in uids if uid not in known and uid not in found}
    waiting, in_a_row = [uid for uid in uids if uid not in found and uid in known], 0
    with progress_bar(
        total=len(uids), initial=len(uids) - len(waiting), unit="mesh", desc="download"
    ) as bar:
        for first in range(0, len(waiting), GROUP):
            for uid, result in _download_group(waiting[first : first + GROUP], package, retries):
                if isinstance(result, Path):
                    found[uid], in_a_row = result, 0
                else:
                    reasons[uid], in_a_row = result, in_a_row + 1
                bar.update()
                if in_a_row == GIVE_UP:
                    tried = found.keys() | reasons.keys()
                    return found, reasons | {
                        u: f"not tried: {GIVE_UP} before it failed"
                        for u in waiting
                        if u not in tried
                    }
    return found, reasons


def _download_group(
    uids: list[str], package: ModuleType, retries: int
) -> Iterator[tuple[str, Path | str]]:
    """Each uid with its file, or with the reason why there is none.

    The package stops at the first object that fails. That object is tried again until its tries are
    used up; then the rest of the group goes on without it.
    """
    rest, tries = list(uids), 0
    while rest:
        try:
            paths = _quietly(package.load_objects, rest)
        except _FAILURES as e:
            # objects that were downloaded before the one that failed
            while rest and (path := next(_cache(package).glob(f"glbs/*/{rest[0]}.glb"), None)):
                yield rest.pop(0), path
                tries = 0
            if not rest:
                return
            tries += 1
            if tries > retries or (isinstance(e, urllib.error.HTTPError) and e.code in _GONE):
                yield (
                    rest.pop(0),
                    f"{type(e).__name__}: {' '.join(str(e).split())}, after {tries} tries",
                )
                tries = 0
            else:
                _pause(tries)
        else:
            yield from ((uid, Path(paths[uid]) if uid in paths else UNKNOWN) for uid in rest)
            return


def _fetch_index(
    package: ModuleType,
    function: Callable[..., T],
    *arguments: object,
    retries: int,
    also: str = "",
) -> T:
    """Calls a function of the package that reads its lists, and tries again when it fails.

    The package writes its lists in place and reads whatever is there. So a list that was cut off is
    deleted before the next try: the paths of the objects, and the file `also` of the cache.
    """
    tries = 0
    while True:
        try:
            return _quietly(function, *arguments)
        except _FAILURES:
            for path in (_cache(package) / name for name in ("object-paths.json.gz", also) if name):
                if path.is_file() and _read_gzip(path) is None:
                    path.unlink()
            tries += 1
            if tries > retries:
                raise
            _pause(tries)


def _quietly(function: Callable[..., T], *arguments: object) -> T:
    """Calls a function of the package, which would print a line for each file."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)


def _pause(tries: int) -> None:
    time.sleep(min(FIRST_PAUSE * 2 ** (tries - 1), LONGEST_PAUSE))


def _cache(package: ModuleType) -> Path:
    return Path(package._VERSIONED_PATH)


def _read_gzip(path: Path) -> dict | None:
    """The content of a list of the package; None if it is missing or damaged."""
    try:
        with gzip.open(path, "rb") as f:
            return json.load(f)
    except (OSError, EOFError, ValueError, zlib.error):
        return None


def read_metadata(
    found: dict[str, Path], package: ModuleType | None, *, retries: int
) -> Iterator[tuple[str, dict]]:
    """(uid, metadata) of the objects that have some, from metadata/<folder>.json.gz.

    The file is beside glbs/<folder>/, or `package` fetches it. After a file that cannot be fetched
    no other is tried: captions are not worth hours of waiting.
    """
    folders: dict[Path, list[str]] = {}
    for uid, path in found.items():
        folders.setdefault(path.parent, []).append(uid)
    for folder, uids in progress_bar(folders.items(), unit="file", desc="metadata"):
        file = f"metadata/{folder.name}.json.gz"
        values = _read_gzip(folder.parents[1] / file)
        if values is None and package is not None:
            try:
                values = _fetch_index(
                    package, package.load_annotations, uids, retries=retries, also=file
                )
            # KeyError: a file in the cache that the package does not know
            except (*_FAILURES, KeyError) as e:
                package = None
                print(
                    f"metadata could not be fetched ({type(e).__name__}: {e}), "
                    "so captions are missing; run it again for them",
                    file=sys.stderr,
                )
        yield from (
            (uid, values[uid]) for uid in uids if values and isinstance(values.get(uid), dict)
        )


def describe(annotation: dict) -> tuple[str, str]:
    """(caption, category) from an object's metadata; "" if it has none."""

    def names(key: str) -> list[str]:
        listed = annotation.get(key) or []
        return [
            clean_name(str(item.get("name") or "")) for item in listed if isinstance(item, dict)
        ]

    caption = clean_name(str(annotation.get("name") or "")) or ", ".join(
        list(filter(None, names("tags")))[:TAGS]
    )
    return caption, next(filter(None, names("categories")), "")


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Limits the time a connection may be silent, for which the package has no setting."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def load_package() -> ModuleType:
    """The objaverse package; a ValueError if it is not installed."""
    try:
        import objaverse
    except ImportError as e:
        raise ValueError(
            "downloads need the package objaverse: python -m pip install objaverse; "
            "or give --local FOLDER with GLBs that are there already"
        ) from e
    return objaverse


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """The parsed command line, and the parser for errors that are found later."""
    parser = command_parser(__doc__, prog="python -m tar3d.data.objaverse")
    parser.add_argument(
        "uids", type=Path, metavar="UIDS.txt", help="text file with one Objaverse uid a line"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for objaverse.csv, which make_samples reads, and missing.csv",
    )
    parser.add_argument(
        "--local",
        type=Path,
        metavar="FOLDER",
        help="use the GLBs below this folder and download nothing",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N uids only")
    parser.add_argument(
        "--retries",
        type=int,
        default=3,
        help="number of times a failed download is tried again (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="give up a connection that is silent for S seconds (default: %(default)s)",
    )
    return parser.parse_args(argv), parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code, 1 if meshes are missing."""
    args, parser = parse_arguments(argv)
    try:
        if args.retries < 0 or args.timeout <= 0 or (args.limit is not None and args.limit < 1):
            raise ValueError(
                "--retries must be at least 0, --timeout more than 0 and --limit at least 1, got "
                f"{args.retries}, {args.timeout:g} and {args.limit}"
            )
        probe_output(args.out, "--out")
        uids = read_uids(args.uids)[: args.limit]
        package = None if args.local else load_package()
        with _timeout(args.timeout):
            found, reasons = (
                find_local(uids, args.local)
                if package is None
                else download(uids, package, retries=args.retries)
            )
            described = {
                uid: describe(values)
                for uid, values in read_metadata(found, package, retries=args.retries)
            }
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    _write_tables(args.out, uids, found, reasons, described)
    num_captions = sum(bool(described.get(uid, ("", ""))[0]) for uid in found)
    print(
        f"{len(found):,} of {len(uids):,} meshes, {num_captions:,} with a caption: next: "
        f"python -m tar3d.data.make_samples {args.out / 'objaverse.csv'}"
    )
    if reasons:
        print(f"{len(reasons):,} are missing, see {args.out / 'missing.csv'}", file=sys.stderr)
    return 1 if reasons else 0


def _write_tables(
    out: Path,
    uids: list[str],
    found: dict[str, Path],
    reasons: dict[str, str],
    described: dict[str, tuple[str, str]],
) -> None:
    """Writes objaverse.csv and missing.csv, both in the order of `uids`."""
    rows = []
    for uid in uids:
        if uid in found:
            caption, category = described.get(uid, ("", ""))
            # not Path.resolve, which would follow links
            file = os.path.abspath(found[uid])  # noqa: PTH100
            rows.append({"id": uid, "file": file, "caption": caption, "category": category})
    write_csv(out / "objaverse.csv", ["id", "file", "caption", "category"], rows)
    missing = [{"uid": uid, "reason": reasons[uid]} for uid in uids if uid in reasons]
    write_csv(out / "missing.csv", ["uid", "reason"], missing)
