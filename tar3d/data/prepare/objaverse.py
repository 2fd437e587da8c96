"""Objaverse by a list of uids -> a table of meshes that make_samples takes:

    python -m tar3d.data.objaverse UIDS.txt --out DIR
    python -m tar3d.data.make_samples DIR/objaverse.csv

UIDS.txt has one uid a line. The GLBs are downloaded by the `objaverse` package into its cache (below ~/.objaverse), those that
are there already are not; run it again after an interruption. With --local FOLDER nothing is downloaded: <uid>.glb is looked
for at any depth of it. Captions are the objects' names, else their tags, from the metadata of Objaverse (downloaded too, or, with
--local, read from metadata/ beside glbs/ where it lies there as in the cache). Uids without a mesh are listed in
DIR/missing.csv with the reason, the rest goes on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
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

from tqdm import tqdm

from tar3d.data.prepare.captions_from_names import clean_name
from tar3d.io import write_csv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import ModuleType

GROUP = 16  # uids a call of the package, which reads its list of 800,000 paths (a second) each time
FIRST_PAUSE, LONGEST_PAUSE = (
    2.0,
    60.0,
)  # seconds before the second try; each further pause is twice as long
GIVE_UP = 20  # uids that fail one after the other: then it is the network, not they
TAGS = 5
_GONE = (404, 410)  # of HTTP: no further try helps
# of the network, and of reading a list that was cut off
_FAILURES = (OSError, http.client.HTTPException, EOFError, ValueError, zlib.error)

UNKNOWN = "Objaverse has no object with this uid"

T = TypeVar("T")


def read_uids(path: Path) -> list[str]:
    """The uids of a list, each once; a ValueError names the first line that is none. Comments (#)
    and blank lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is not a readable list of uids ({e})") from e
    uids = {}
    for number, line in enumerate(lines, start=1):
        uid = line.partition("#")[0].strip().removesuffix(".glb").lower()
        if uid and not re.fullmatch("[0-9a-f]{32}", uid):
            raise ValueError(
                f"{path}, line {number}: {line.strip()!r} is not a uid, which has 32 hexadecimal digits"
            )
        if uid:
            uids[uid] = None
    if not uids:
        raise ValueError(f"{path} lists no uids")
    return list(uids)


def find_local(uids: Iterable[str], folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """GLBs below `folder` by uid, and the reasons of those that are not there."""
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
    """GLBs in the cache by uid, downloaded where they are not there yet, and the reasons of those
    that could not be had.

    Raises ValueError when the list of Objaverse's own uids cannot be fetched."""
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
    with tqdm(
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
    """Each uid with its file, or the reason why there is none. The package stops at the first
    object that fails: that one gets all its tries, and if none helps the others go on without
    it."""
    rest, tries = list(uids), 0
    while rest:
        try:
            paths = _quietly(package.load_objects, rest)
        except _FAILURES as e:
            while rest and (
                path := next(_cache(package).glob(f"glbs/*/{rest[0]}.glb"), None)
            ):  # done before it
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
    """What `function` reads from the package's lists: the paths of the objects and the file `also`
    of its cache.

    The package writes these in place and reads whatever is there, so one that was cut off is
    removed before the next try."""
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
    """Calls the package without the line that it prints for each file."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)


def _pause(tries: int) -> None:
    time.sleep(min(FIRST_PAUSE * 2 ** (tries - 1), LONGEST_PAUSE))


def _cache(package: ModuleType) -> Path:
    return Path(package._VERSIONED_PATH)


def _read_gzip(path: Path) -> dict | None:
    """A list of the package; None where there is none that can be read."""
    try:
        with gzip.open(path, "rb") as f:
            return json.load(f)
    except (OSError, EOFError, ValueError, zlib.error):
        return None


def annotations(
    found: dict[str, Path], package: ModuleType | None, *, retries: int
) -> Iterator[tuple[str, dict]]:
    """Metadata by uid, of those that have some: from metadata/<folder>.json.gz beside
    glbs/<folder>/, which `package` fetches.

    A file that cannot be fetched ends the fetching: captions are not worth hours of tries."""
    folders: dict[Path, list[str]] = {}
    for uid, path in found.items():
        folders.setdefault(path.parent, []).append(uid)
    for folder, uids in tqdm(folders.items(), unit="file", desc="metadata"):
        file = f"metadata/{folder.name}.json.gz"
        values = _read_gzip(folder.parents[1] / file)
        if values is None and package is not None:
            try:
                values = _fetch_index(
                    package, package.load_annotations, uids, retries=retries, also=file
                )
            except (
                *_FAILURES,
                KeyError,
            ) as e:  # KeyError: a file in the cache that the package does not know
                package = None
                print(
                    f"metadata could not be fetched ({type(e).__name__}: {e}), so captions are missing; run it again for them",
                    file=sys.stderr,
                )
        yield from (
            (uid, values[uid]) for uid in uids if values and isinstance(values.get(uid), dict)
        )


def describe(annotation: dict) -> tuple[str, str]:
    """(caption, category) of an object's metadata, "" where it says nothing."""

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
    """Without it a connection that fell silent is waited for without end; the package offers no
    setting."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def load_package() -> ModuleType:
    try:
        import objaverse
    except ImportError as e:
        raise ValueError(
            "downloads need the package objaverse: python -m pip install objaverse; "
            "or give --local FOLDER with GLBs that are there already"
        ) from e
    return objaverse


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("uids", type=Path, metavar="UIDS.txt", help="one uid a line")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="gets objaverse.csv and missing.csv"
    )
    parser.add_argument(
        "--local", type=Path, metavar="FOLDER", help="take GLBs from here, and download nothing"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N uids only")
    parser.add_argument(
        "--retries",
        type=int,
        default=3,
        help="further tries of a download that failed (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds without a byte (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    try:
        if args.retries < 0 or args.timeout <= 0 or (args.limit is not None and args.limit < 1):
            raise ValueError(
                "--retries must be at least 0, --timeout more than 0 and --limit at least 1, got "
                f"{args.retries}, {args.timeout:g} and {args.limit}"
            )
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
                for uid, values in annotations(found, package, retries=args.retries)
            }
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    rows = [
        {
            "id": uid,
            "file": os.path.abspath(found[uid]),
            "caption": described.get(uid, ("", ""))[0],
            "category": described.get(uid, ("", ""))[1],
        }
        for uid in uids
        if uid in found
    ]
    write_csv(args.out / "objaverse.csv", ["id", "file", "caption", "category"], rows)
    missing = [{"uid": uid, "reason": reasons[uid]} for uid in uids if uid in reasons]
    write_csv(args.out / "missing.csv", ["uid", "reason"], missing)
    print(
        f"{len(rows):,} of {len(uids):,} meshes, {sum(bool(r['caption']) for r in rows):,} with a caption: next: "
        f"python -m tar3d.data.make_samples {args.out / 'objaverse.csv'}"
    )
    if reasons:
        print(f"{len(reasons):,} are missing, see {args.out / 'missing.csv'}", file=sys.stderr)
    return 1 if reasons else 0
