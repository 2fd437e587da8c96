"""Files of a folder, loose or packed into tar shards, read alike.

    ShardedFiles("DATA/samples").read("chair.npz")   # DATA/samples/chair.npz, else a shard's member

Millions of small files are more than most file systems bear, so `make_samples --shard-size N` packs
N shapes into each tar. A shard is an ordinary uncompressed tar (`tar xf` unpacks the loose files)
and is never changed after it got its name. The offsets of its members are in a JSON file beside it,
which is written again from the tar when it is missing or stale.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d.folders import is_hidden
from tar3d.io import atomic_write, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOSE = None  # the location of a file that is in no shard


class ShardedFiles:
    """The files below a folder whose names end in `suffix`.

    Iterates over their names (POSIX, relative to `folder`), sorted. Where a loose and a packed file
    have the same name, the loose one is read.
    """

    def __init__(self, folder: str | Path, suffix: str = "") -> None:
        self.folder = Path(folder)
        # name -> shard, offset, bytes
        self._location: dict[str, tuple[str, int, int] | None] = {}
        self._stats: dict[str, os.stat_result] = {}  # of shards
        for shard in sorted(self.folder.glob("*.tar")):
            for name, (offset, size) in read_index(shard).items():
                self._location[name] = (shard.name, offset, size)
        for base, folders, files in os.walk(self.folder, followlinks=True):
            folders[:] = [f for f in folders if not is_hidden(f) and not _leads_back(base, f)]
            for file in files:
                name = Path(base, file).relative_to(self.folder).as_posix()
                if not is_hidden(file) and not name.endswith((".tar", ".tar.json")):
                    self._location[name] = LOOSE
        self._location = {
            name: self._location[name] for name in sorted(self._location) if name.endswith(suffix)
        }

    def __contains__(self, name: str) -> bool:
        return name in self._location

    def __iter__(self) -> Iterator[str]:
        return iter(self._location)

    def __len__(self) -> int:
        return len(self._location)

    def read(self, name: str, last: int | None = None) -> bytes:
        """The content of a file, or its `last` bytes.

        Raises ValueError if it does not exist or its shard was cut off.
        """
        if name not in self._location:
            raise ValueError(
                f"{self.folder} holds no {name}, neither as a file nor in a .tar shard"
            )
        location = self._location[name]
        if location is LOOSE:
            with (self.folder / name).open("rb") as f:
                if last is not None:
                    f.seek(max(0, f.seek(0, os.SEEK_END) - last))
                return f.read()
        shard, offset, size = location
        if last is not None:
            offset, size = offset + max(0, size - last), min(size, last)
        with (self.folder / shard).open("rb") as f:
            f.seek(offset)
            content = f.read(size)
        if len(content) != size:
            raise ValueError(
                f"{self.folder / shard} ends inside {name}: it was cut off; make it again"
            )
        return content

    def version(self, name: str) -> tuple[int, int, int, int]:
        """Numbers that change when a file is written: size, times of it or its shard, offset.

        A copy elsewhere has other numbers and the same content.
        """
        location = self._location[name]
        shard, offset = (name, 0) if location is LOOSE else location[:2]
        if (found := self._stats.get(shard)) is None:
            found = os.stat(f"{self.folder}/{shard}")  # noqa: PTH116  half the time of Path.stat
            if location is not LOOSE:
                self._stats[shard] = found
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns, offset

    def where(self, name: str) -> str:
        """The path of a loose file, or shard and member, for messages."""
        location = self._location.get(name, LOOSE)
        if location is LOOSE:
            return str(self.folder / name)
        return f"{self.folder / location[0]}:{name}"


def _leads_back(base: str, folder: str) -> bool:
    """True for a link in the folder `base` to a folder that holds it, where a walk has no end."""
    path = Path(base, folder)
    if not path.is_symlink():
        return False
    return Path(os.path.realpath(base), "_").is_relative_to(os.path.realpath(path))


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    """Packs `files`, name -> content, into the tar `path`.

    The same files give the same bytes: members are sorted and have no time and no owner.
    """
    with (
        atomic_write(path) as f,
        tarfile.open(fileobj=f, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    read_index(path)


def read_index(shard: Path) -> dict[str, tuple[int, int]]:
    """Name -> (offset, bytes) of each member of a tar.

    Read from <shard>.json if that records the tar's size, else from the tar. Raises ValueError for
    a tar that cannot be read or was cut off.
    """
    cache, size = shard.with_name(f"{shard.name}.json"), shard.stat().st_size
    if cache.is_file():
        try:
            found = json.loads(cache.read_text(encoding="utf-8"))
            if found["bytes"] == size:
                return {
                    name: (offset, length) for name, (offset, length) in found["members"].items()
                }
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # damaged or of another program: it is only a cache
    try:
        with tarfile.open(shard) as tar:
            members = {m.name: (m.offset_data, m.size) for m in tar if m.isfile()}
    except (tarfile.TarError, OSError) as e:
        raise ValueError(f"{shard} is not a readable tar ({e}); make it again") from e
    if any(offset + length > size for offset, length in members.values()):
        raise ValueError(f"{shard} ends inside its last member: it was cut off; make it again")
    if os.access(shard.parent, os.W_OK):
        write_json(cache, {"bytes": size, "members": members})
    return members
