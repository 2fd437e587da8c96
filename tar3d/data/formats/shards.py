"""The files of a folder, whether they lie in it one by one or in tar shards.

    Files("DATA/samples").read("chair.npz")       # DATA/samples/chair.npz, or the member chair.npz of DATA/samples/*.tar

Millions of small files are more than most file systems bear, so `make_samples --shard-size N` packs
N shapes into each tar. A shard is an ordinary uncompressed tar (`tar xf` gives the loose files
back) and is never changed once it has its name. Where its members begin stands in a JSON file
beside it; one that is missing or stale is made again from the tar.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

from tar3d.io import atomic_write, write_json

LOOSE = None  # in place of a shard's name


class ShardedFiles:
    """Names (POSIX, relative to `folder`) that end in `suffix`, sorted. A loose file goes before a
    packed one of its name."""

    def __init__(self, folder: str | Path, suffix: str = "") -> None:
        self.folder = Path(folder)
        self._place: dict[str, tuple[str, int, int] | None] = {}  # name -> shard, offset, bytes
        for shard in sorted(self.folder.glob("*.tar")):
            for name, (offset, size) in read_index(shard).items():
                self._place[name] = (shard.name, offset, size)
        for base, _, files in os.walk(self.folder):
            for file in files:
                name = Path(base, file).relative_to(self.folder).as_posix()
                if not file.startswith(".") and not name.endswith((".tar", ".tar.json")):
                    self._place[name] = LOOSE
        self._place = {
            name: self._place[name] for name in sorted(self._place) if name.endswith(suffix)
        }

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def __iter__(self):
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)

    def read(self, name: str) -> bytes:
        """The content; a ValueError if there is no such file, or the shard is shorter than its
        index says."""
        if name not in self._place:
            raise ValueError(
                f"{self.folder} holds no {name}, neither as a file nor in a .tar shard"
            )
        place = self._place[name]
        if place is LOOSE:
            return (self.folder / name).read_bytes()
        shard, offset, size = place
        with open(self.folder / shard, "rb") as f:
            f.seek(offset)
            content = f.read(size)
        if len(content) != size:
            raise ValueError(
                f"{self.folder / shard} ends inside {name}: it was cut off; make it again"
            )
        return content

    def where(self, name: str) -> str:
        """For messages: the path of a loose file, or shard and member."""
        place = self._place.get(name, LOOSE)
        return str(self.folder / name) if place is LOOSE else f"{self.folder / place[0]}:{name}"


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    """Packs `files`, sorted by name, into the tar `path`. The same files give the same bytes: no
    time, no owner."""
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
    """Name -> (offset, bytes) of each member, from <shard>.json where it fits the tar's size, else
    from the tar itself.

    A ValueError if the tar cannot be read."""
    beside, size = shard.with_name(f"{shard.name}.json"), shard.stat().st_size
    if beside.is_file():
        try:
            found = json.loads(beside.read_text(encoding="utf-8"))
            if found["bytes"] == size:
                return {name: tuple(place) for name, place in found["members"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # cut off or not ours: it is only a cache
    try:
        with tarfile.open(shard) as tar:
            members = {m.name: (m.offset_data, m.size) for m in tar if m.isfile()}
    except (tarfile.TarError, OSError) as e:
        raise ValueError(f"{shard} is not a readable tar ({e}); make it again") from e
    if any(offset + length > size for offset, length in members.values()):
        raise ValueError(f"{shard} ends inside its last member: it was cut off; make it again")
    if os.access(shard.parent, os.W_OK):
        write_json(beside, {"bytes": size, "members": members})
    return members
