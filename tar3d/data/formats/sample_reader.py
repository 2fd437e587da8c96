"""The interface between a data set's layout on disk and training.

A layout of your own takes one file with a subclass of `SampleReader`, and one line in the table
`SAMPLE_READERS` of `tar3d.data.formats.samples`. Training, make_tokens and the evaluation then
read it like any other.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

# (pool, number of stored rows) -> the rows to read; pool is "surface", "volume" or "near"
ChooseRows = Callable[[str, int], "slice | np.ndarray"]


class SampleReader(ABC):
    """Training samples of the shapes of one data set folder.

    It is sent to the workers of a data loader, so it must be picklable; small if it can be.
    """

    name: ClassVar[str]  # name of the layout in help texts
    folder: Path  # the folder of the samples, for messages
    advice: str  # remedy for an empty split, in messages

    @classmethod
    @abstractmethod
    def holds(cls, folder: Path) -> bool:
        """True if `folder` has this layout. Must be cheap: it is asked for every data set."""

    @abstractmethod
    def __init__(self, folder: str | Path) -> None:
        """Opens the folder; a ValueError if it lacks something that the layout requires."""

    @abstractmethod
    def ids(self, split: str) -> list[str]:
        """The ids of the shapes of "train", "val" or "test" that have samples, in a fixed order."""

    def listed(self, split: str) -> list[str]:
        """The ids that a split names, with or without samples."""
        return self.ids(split)

    def advice_for(self, split: str) -> str:  # noqa: ARG002 (for subclasses)
        """What a user can do about a split without shapes."""
        return self.advice

    @abstractmethod
    def categories(self) -> dict[str, str]:
        """Categories by id, for the shapes whose category is known."""

    @abstractmethod
    def where(self, shape_id: str) -> str:
        """The path of a shape's samples, for messages."""

    @abstractmethod
    def arrays(self, shape_id: str, choose: ChooseRows) -> dict[str, np.ndarray]:
        """Chosen rows of a shape's samples, in the project's frame ([-1, 1]^3, Y up).

        `choose` is called once for each of "surface", "volume" and "near", in this order, because
        it draws random rows. Returns

            surface     (N, 6) float16 or float32, points and unit normals
            points      (M, 3) float16 or float32, query points, those of the volume first
            inside      (M,) bool, whether a query point is inside the shape
            is_near     (M,) bool, False for points drawn in the volume, True near the surface
            transform   (4, 4) float64, from this frame to that of the mesh's file

        The arrays are as they are stored; `to_samples` checks them.
        """

    @abstractmethod
    def surface(self, shape_id: str) -> np.ndarray:
        """All surface points and normals of a shape, (N, 6) float32, checked."""

    def checksum(self, shape_id: str) -> str:
        """A text that changes when the samples of a shape do, wherever their files are.

        It is asked for every shape as a training starts. This one reads all samples; a layout whose
        files hold checksums returns those, which takes a hundredth of the time.
        """
        arrays = self.arrays(shape_id, lambda _, stored: slice(0, stored))
        digest = hashlib.sha256()
        for name, array in sorted(arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]
