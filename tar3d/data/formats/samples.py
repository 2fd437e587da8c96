"""Training samples on disk: one .npz a shape, and `open_samples` for every layout of a data set.

A sample file has surface (N, 6) float16; points (M, 3) float16; inside and is_near, packed bits of
(M,); transform (4, 4) float64. Labels were computed for the stored float16 coordinates. Files load
with allow_pickle=False. Importing this file does not load torch, because the processes that make
samples do without it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tar3d.contracts import ShapeSamples
from tar3d.data.formats.dataset_folder import read_categories, read_splits
from tar3d.data.formats.npz import DIRECTORY_BYTES, float32, npz_checksums, read_npz
from tar3d.data.formats.sample_reader import SampleReader
from tar3d.data.formats.shapenet import ShapeNetV2
from tar3d.data.formats.shards import ShardedFiles
from tar3d.io import atomic_write

if TYPE_CHECKING:
    from tar3d.data.formats.sample_reader import ChooseRows

# key -> dtype, number of axes
_STORED: dict[str, tuple[type[np.generic], int]] = {
    "surface": (np.float16, 2),
    "points": (np.float16, 2),
    "inside": (np.uint8, 1),
    "is_near": (np.uint8, 1),
    "transform": (np.float64, 2),
}


def sample_bytes(samples: ShapeSamples) -> bytes:
    """The content of a sample file; the same samples give the same bytes."""
    content = io.BytesIO()
    np.savez(
        content,
        surface=samples.surface.astype(np.float16),
        points=samples.points.astype(np.float16),
        inside=np.packbits(samples.inside),
        is_near=np.packbits(samples.is_near),
        transform=samples.to_source,
    )
    return content.getvalue()


def save_samples(samples: ShapeSamples, path: Path) -> None:
    """Writes a sample file, whole or not at all."""
    with atomic_write(path) as f:
        f.write(sample_bytes(samples))


def load_samples(path: str | Path, content: bytes | None = None) -> ShapeSamples:
    """Reads and checks a sample file.

    With `content`, those bytes are parsed and `path` only names them in messages, as for a member
    of a tar shard. A ValueError names the file and the key that is missing or has the wrong type,
    shape or range.
    """
    try:
        content = Path(path).read_bytes() if content is None else content
    except OSError as e:
        raise _unreadable(str(path), e) from e
    return to_samples(_parse(content, str(path)), str(path))


def to_samples(arrays: dict[str, np.ndarray], where: str) -> ShapeSamples:
    """Arrays as `SampleReader.arrays` returns them, widened to float32 and checked."""
    try:
        return ShapeSamples(
            float32(arrays["surface"]),
            float32(arrays["points"]),
            arrays["inside"],
            arrays["is_near"],
            arrays["transform"].copy(),
        )
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from e


def _parse(content: bytes, where: str) -> dict[str, np.ndarray]:
    """The arrays as they are stored, labels unpacked to bool."""
    try:
        arrays = read_npz(content, _STORED)
    except ValueError as e:
        raise _unreadable(where, e) from e
    for key, (dtype, ndim) in _STORED.items():
        if key not in arrays:
            raise ValueError(f"{where} has no key {key!r}; a sample file has {', '.join(_STORED)}")
        if arrays[key].dtype != dtype or arrays[key].ndim != ndim:
            raise ValueError(
                f"{where}: {key} must be {np.dtype(dtype)} with {ndim} axes, "
                f"got {arrays[key].dtype} {arrays[key].shape}"
            )
    count = len(arrays["points"])
    num_bytes = -(-count // 8)
    for key in ("inside", "is_near"):
        if len(arrays[key]) != num_bytes:
            raise ValueError(
                f"{where}: {key} must be {num_bytes} bytes, one bit a point, got {len(arrays[key])}"
            )
        arrays[key] = np.unpackbits(arrays[key], count=count).view(bool)
    return arrays


def _unreadable(where: str, error: Exception) -> ValueError:
    return ValueError(
        f"{where} is not a readable sample file ({error}); "
        "make it again with tar3d.data.make_samples"
    )


class SampleFolder(SampleReader):
    """The samples that `make_samples` wrote, one by one or in tar shards."""

    name = "samples/ and splits.json, as make_samples writes them"

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """True if `folder` holds samples/."""
        return (folder / "samples").is_dir()

    def __init__(self, folder: str | Path) -> None:
        self.root, self.folder = Path(folder), Path(folder) / "samples"
        self.advice = f"make them with python -m tar3d.data.make_samples {folder}"
        self.files = ShardedFiles(self.folder, ".npz")

    def listed(self, split: str) -> list[str]:
        """The ids of a split in splits.json."""
        return read_splits(self.root)[split]

    def advice_for(self, split: str) -> str:
        """`advice`, or where samples are there, that the split needs ids."""
        if not self.files or self.listed(split):
            return self.advice
        return (
            f"{self.root / 'splits.json'} names no shape for it; a training needs at least one in "
            "each of train and val, so move some there"
        )

    def ids(self, split: str) -> list[str]:
        """The ids of a split in splits.json that have samples, in its order."""
        return [i for i in self.listed(split) if f"{i}.npz" in self.files]

    def categories(self) -> dict[str, str]:
        """Categories by id, from manifest.csv."""
        return read_categories(self.root)

    def where(self, shape_id: str) -> str:
        """The path of a shape's file, or shard and member."""
        return self.files.where(f"{shape_id}.npz")

    def arrays(self, shape_id: str, choose: ChooseRows) -> dict[str, np.ndarray]:
        """Chosen rows of a shape's samples; checksums are checked, values are not."""
        arrays = self._read(shape_id)
        near = arrays["is_near"]
        surface = arrays["surface"][choose("surface", len(arrays["surface"]))]
        chosen = np.concatenate(
            [
                rows[choose(pool, len(rows))]
                for pool, rows in (
                    ("volume", np.flatnonzero(~near)),
                    ("near", np.flatnonzero(near)),
                )
            ]
        )
        return (
            arrays
            | {"surface": surface}
            | {name: arrays[name][chosen] for name in ("points", "inside", "is_near")}
        )

    def surface(self, shape_id: str) -> np.ndarray:
        """All surface points and normals of a shape, (N, 6) float32, checked."""
        return to_samples(self._read(shape_id), self.where(shape_id)).surface

    def checksum(self, shape_id: str) -> str:
        """The checksums in a shape's file."""
        name = f"{shape_id}.npz"
        try:
            return npz_checksums(self.files.read(name, DIRECTORY_BYTES))
        except (ValueError, OSError) as e:
            raise _unreadable(self.files.where(name), e) from e

    def _read(self, shape_id: str) -> dict[str, np.ndarray]:
        return _parse(self.files.read(f"{shape_id}.npz"), self.where(shape_id))


# Layouts of data sets beside this project's own; the first that `holds` a folder reads it.
SAMPLE_READERS: tuple[type[SampleReader], ...] = (ShapeNetV2,)


def open_samples(folder: str | Path) -> SampleReader:
    """The samples of a data set folder, in whichever layout of `SAMPLE_READERS` it has.

    A folder in none of them is a `SampleFolder`; without samples, that is reported when a split
    turns out to be empty.
    """
    fitting = (reader for reader in SAMPLE_READERS if reader.holds(Path(folder)))
    return next(fitting, SampleFolder)(folder)
