"""A scalar field on the cube [-1, 1]^3 -> a closed `Mesh` with outward winding, by marching cubes.

The field is a plain function of points, so this module knows no network. Outside the cube everything is empty: a shape
that touches the border is closed there. Refuses a field that is nowhere inside (`EmptyFieldError`) or not finite.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from skimage.measure import marching_cubes

from tar3d.contracts import Mesh
from tar3d.mesh.load import face_components


class EmptyFieldError(ValueError):
    """The field exceeds the level nowhere on the lattice, so there is no surface to extract."""


def extract(
    field: Callable[[np.ndarray], np.ndarray], resolution: int, *, level: float = 0.0, chunk: int = 65536
) -> Mesh:
    """The surface where `field` crosses `level`; larger values are inside.

    `field` maps (M, 3) float32 points, M <= `chunk`, to (M,) values. It is asked at the (resolution + 1)^3 lattice points
    -1 + 2 i / resolution along each axis, x slowest, so a lattice cell is 2 / resolution wide.
    """
    if resolution < 1 or chunk < 1:
        raise ValueError(f"extraction needs resolution >= 1 and chunk >= 1, got {resolution} and {chunk}")
    values = _evaluate(field, resolution, chunk) - np.float32(level)
    highest = float(values.max())
    if highest <= 0:
        raise EmptyFieldError(
            f"the field is empty: its largest value on the {resolution + 1}^3 lattice is {highest + level:.4g}, "
            f"not above the level {level:.4g}; the shape is missing or thinner than a cell"
        )
    values /= np.abs(values).max()
    # a deep outside layer puts the closing faces within a thousandth of a cell of the border, where clipping leaves them
    values = np.pad(values, 1, constant_values=-1e3)
    # Lorensen's table stays closed where corner values tie, Lewiner's (the default) does not
    index, faces, _, _ = marching_cubes(values, 0.0, gradient_direction="ascent", method="lorensen")
    vertices = (index.astype(np.float64) - 1) * 2 / resolution - 1
    return Mesh(vertices.clip(-1.0, 1.0), faces)


def drop_small_components(mesh: Mesh, min_volume_share: float) -> Mesh:
    """Removes the connected pieces that enclose less than `min_volume_share` (0 to 1) of the volume of the largest one.

    Meant for extracted meshes: pieces are faces that share vertices, and each is closed. Small cavities are filled too.
    """
    if not 0.0 <= min_volume_share <= 1.0:
        raise ValueError(f"min_volume_share must be in [0, 1], got {min_volume_share}")
    faces = mesh.faces
    piece = face_components(faces, len(mesh.vertices))  # (F,)
    a, b, c = (mesh.vertices[faces[:, i]].astype(np.float64) for i in range(3))
    volume = np.abs(np.bincount(piece, np.einsum("ij,ij->i", a, np.cross(b, c)) / 6))
    kept = faces[volume[piece] >= min_volume_share * volume.max()]
    used = np.zeros(len(mesh.vertices), dtype=bool)
    used[kept] = True
    return Mesh(mesh.vertices[used], (np.cumsum(used) - 1)[kept], mesh.to_source)


def _evaluate(field: Callable[[np.ndarray], np.ndarray], resolution: int, chunk: int) -> np.ndarray:
    """Field values on the lattice, (resolution + 1,) * 3 float32."""
    side = resolution + 1
    axis = np.linspace(-1.0, 1.0, side).astype(np.float32)
    values = np.empty(side**3, dtype=np.float32)
    for start in range(0, len(values), chunk):
        flat = np.arange(start, min(start + chunk, len(values)))
        points = np.stack([axis[i] for i in np.unravel_index(flat, (side,) * 3)], axis=-1)  # (M, 3)
        answer = np.asarray(field(points))
        if answer.shape != flat.shape:
            raise ValueError(f"the field must map {points.shape} points to {flat.shape} values, got {answer.shape}")
        values[flat] = answer
    if not np.isfinite(values).all():
        raise ValueError(f"the field has {np.count_nonzero(~np.isfinite(values)):,} NaN or infinite values on the lattice")
    return values.reshape((side,) * 3)
