"""The five types that travel between stages, checked when they are made.

    Mesh          a triangle mesh in the project's frame, with the way back to its file's frame
    ShapeSamples  training data of the tokenizer: surface points and labelled query points
    Tokens        code ids in the file order of their layout
    Triplane      three feature planes xy, xz, yz
    Condition     the embedding prefix of the GPT and its validity mask

Frame: right-handed, Y up, centred on the bounding box, largest |coordinate| = 0.95 of the cube
[-1, 1]^3.

Letters: B batch, N surface points, M query points, R grid side of a token plane, T tokens = 3 R^2,
P prefix length, E condition width, C plane channels, V vertices, F faces. Geometry is numpy, inputs
and outputs of networks are torch. This module imports no torch, so that data workers start fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tar3d.layouts import layout_class

if TYPE_CHECKING:
    import torch

# largest |coordinate| of a normalised mesh; the rest is a margin in which every surface closes
CUBE_FILL = 0.95
PLANES = ("xy", "xz", "yz")


class LogitsNotFinite(ValueError):
    """A GPT gave logits that are NaN or infinite, so that there are no tokens."""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _identity() -> np.ndarray:
    return np.eye(4)


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh: `vertices` (V, 3) float32, `faces` (F, 3) int64, `to_source` (4, 4) float64.

    `to_source` maps homogeneous coordinates of this frame to those of the file the mesh came from
    (identity for a mesh that came from no file). A mesh has at least one face, finite vertices, and
    faces that index its vertices.
    """

    vertices: np.ndarray
    faces: np.ndarray
    to_source: np.ndarray = field(default_factory=_identity)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "vertices", np.ascontiguousarray(self.vertices, dtype=np.float32))
        set_(self, "faces", np.ascontiguousarray(self.faces, dtype=np.int64))
        set_(self, "to_source", np.asarray(self.to_source, dtype=np.float64))
        v, f = self.vertices, self.faces
        _check(v.ndim == 2 and v.shape[1] == 3, f"mesh vertices must be (V, 3), got {v.shape}")
        _check(f.ndim == 2 and f.shape[1] == 3, f"mesh faces must be (F, 3), got {f.shape}")
        _check(len(f) > 0, "a mesh needs at least one face, got none")
        _check(bool(np.isfinite(v).all()), "mesh vertices hold NaN or infinite coordinates")
        _check(
            f.min() >= 0 and f.max() < len(v),
            f"mesh faces index vertices {f.min()}..{f.max()}, but there are {len(v)}",
        )
        _check(
            self.to_source.shape == (4, 4), f"to_source must be (4, 4), got {self.to_source.shape}"
        )


@dataclass(frozen=True)
class ShapeSamples:
    """Points of one shape: on its surface, and queries that are labelled as inside or not.

    `surface` (N, 6) holds points and unit normals, `points` (M, 3) queries, `inside` and `is_near`
    (M,) bool, `to_source` (4, 4). `is_near` marks queries drawn close to the surface; the others
    are uniform in the cube. Coordinates lie in [-1, 1].
    """

    surface: np.ndarray
    points: np.ndarray
    inside: np.ndarray
    is_near: np.ndarray
    to_source: np.ndarray = field(default_factory=_identity)

    def __post_init__(self) -> None:
        s, p = self.surface, self.points
        _check(s.ndim == 2 and s.shape[1] == 6, f"surface must be (N, 6), got {s.shape}")
        _check(p.ndim == 2 and p.shape[1] == 3, f"points must be (M, 3), got {p.shape}")
        for name in ("inside", "is_near"):
            a = getattr(self, name)
            _check(
                a.shape == (len(p),) and a.dtype == bool,
                f"{name} must be ({len(p)},) bool, got {a.shape} {a.dtype}",
            )
        for name, a in (("surface", s), ("points", p)):
            _check(bool(np.isfinite(a).all()), f"{name} holds NaN or infinite values")
            _check(len(a) > 0, f"{name} is empty")
            _check(
                float(np.abs(a[:, :3]).max()) <= 1.0,
                f"{name} leaves the cube [-1, 1]^3: normalise the mesh first",
            )
        _check(
            self.to_source.shape == (4, 4), f"to_source must be (4, 4), got {self.to_source.shape}"
        )


@dataclass(frozen=True)
class Tokens:
    """Code `ids` (B, T) int64 in the file order of their `layout` (`tar3d.layouts`).

    T must be a length that the layout has: 3 R^2 for "triplane".
    """

    ids: torch.Tensor
    layout: str = "triplane"

    def __post_init__(self) -> None:
        _check(self.ids.ndim == 2, f"token ids must be (B, T), got {tuple(self.ids.shape)}")
        _check(
            str(self.ids.dtype) == "torch.int64", f"token ids must be int64, got {self.ids.dtype}"
        )
        layout_class(self.layout, "the layout of tokens").check_length(self.ids.shape[1])


@dataclass(frozen=True)
class Triplane:
    """Feature `planes` (B, 3, C, H, W) in the order xy, xz, yz.

    A plane `ab` has rows along b and columns along a.
    """

    planes: torch.Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.planes.shape)
        _check(
            len(shape) == 5 and shape[1] == 3 and shape[3] == shape[4],
            f"planes must be (B, 3, C, H, H), got {shape}",
        )


@dataclass(frozen=True)
class Condition:
    """The GPT's prefix: `embeddings` (B, P, E) and their validity `mask` (B, P) bool.

    A row without a valid position is no condition: the GPT takes it only as a dropped row. `full`
    promises that every position is valid. It lets callers skip reading the mask, which would make a
    GPU wait for the host.
    """

    embeddings: torch.Tensor
    mask: torch.Tensor
    full: bool = False

    @classmethod
    def of(cls, embeddings: torch.Tensor) -> Condition:
        """Embeddings (B, P, E) that are all valid."""
        return cls(embeddings, embeddings.new_ones(embeddings.shape[:2]).bool(), full=True)

    def __post_init__(self) -> None:
        e, m = self.embeddings, self.mask
        _check(e.ndim == 3, f"condition embeddings must be (B, P, E), got {tuple(e.shape)}")
        _check(
            tuple(m.shape) == tuple(e.shape[:2]),
            f"condition mask must be {tuple(e.shape[:2])}, got {tuple(m.shape)}",
        )
        _check(str(m.dtype) == "torch.bool", f"condition mask must be bool, got {m.dtype}")
