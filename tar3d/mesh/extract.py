"""Extraction: a scalar field on the cube [-1, 1]^3 -> a closed `Mesh`, by marching cubes.

The field is a plain function of points, so this module knows no network. Outside the cube
everything is empty: a shape that touches the border is closed there. Faces wind outward.

A coarse lattice is evaluated everywhere, then cells are halved, again and again, where the surface
is or may be, until they have the size asked for (hierarchical decoding, as in FlashVDM, arXiv
2503.16302). Three rules select the cells that are halved:

    near    the corner value next to the level is off it by less than MARGIN times the range of the
            corners' values: a field as steep beyond the cell as within would reach the level there
    probe   one of the probes, points spread evenly over the cube, lies on the other side of the
            surface than all corners of its cell
    follow  where the surface leaves the selected cells, the next cell is selected too, on every
            lattice, so that a surface is found whole or not at all

Connected to anything that is found, a part is what the dense lattice gives, vertex by vertex. A
separate piece can be missed only if it lies between the points of the coarse lattice, no slope
leads to it (as in a field that is flat up to a jump), and no probe is in it. From 128 cells on a
piece of volume V holds 4,096 V probes on average: a plate of 1.2 x 1.2 x 0.0156 (one cell of 128)
holds 92, a ball of radius 0.05 two, one of radius 0.02 mostly none.

Nothing as large as the fine lattice exists: cells are lists, worked on in slabs of a few layers.
All of it runs on the device of the field. This module uses torch, so data workers must not import
it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tar3d.contracts import Mesh
from tar3d.mesh.lattice import Lattice, Points, between, find, nonzero
from tar3d.mesh.lattice_field import LatticeField, Probes
from tar3d.mesh.load import FACES_AT_ONCE, blocks, face_components
from tar3d.mesh.marching_cubes import CORNERS, crossing, edge_corners, triangulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# cells along an axis of the coarse lattice, at least; docs/speed.md has what was measured
COARSE = 48
# with 0.5, two of 37 test shapes miss a speck at 256^3, with 0.75 and 1 none (docs/speed.md)
MARGIN = 0.75
# the six faces of a cell: axis, end (0 or 1), and the bits of its four corners in a case number
_FACES = tuple(
    (axis, end, sum(1 << c for c in range(8) if CORNERS[c][axis] == end))
    for axis in range(3)
    for end in (0, 1)
)


class EmptyFieldError(ValueError):
    """The field exceeds the level at no lattice point that was evaluated: there is no surface."""


@torch.no_grad()
def extract(
    field: Callable[[Tensor], Tensor],
    resolution: int,
    *,
    level: float = 0.0,
    chunk: int = 65536,
    coarse: int = COARSE,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Mesh:
    """The surface where `field` crosses `level`; larger values are inside.

    `field` maps points (M, 3) float32 on `device`, M <= `chunk`, to values (M,). It is evaluated at
    points of the lattice -1 + 2 i / resolution, whose cells are 2 / resolution wide: everywhere on
    a coarse lattice of at least `coarse` and less than twice as many cells along each axis, at
    the probes, and on finer lattices where the surface may be. With `coarse` = `resolution` it is
    evaluated everywhere.
    `progress` is called with (cells done, cells in all) of each lattice in turn; the finest is most
    of the work. Raises `EmptyFieldError` for a field without a surface, and ValueError for one that
    is not finite or returns another number of values.
    """
    if resolution < 1 or chunk < 1 or coarse < 1:
        raise ValueError(
            f"extraction needs resolution, chunk and coarse >= 1, got {resolution}, {chunk} and "
            f"{coarse}"
        )
    device = torch.device(device)
    halvings = 0
    while resolution >= coarse << (halvings + 1):
        halvings += 1
    values = LatticeField(field, resolution, float(level), chunk, device)
    probes = Probes(values, resolution) if halvings else None
    cells: Tensor | None = None
    points: Points | None = None
    for halving in range(halvings, -1, -1):
        lattice = Lattice(resolution, 1 << halving)
        if points is not None:
            points = lattice.from_coarser(points)
        cells, points = _select_cells(
            values, lattice, cells, points, probes if halving else None, progress
        )
    assert cells is not None
    assert points is not None
    if len(cells) == 0:
        coarsest = f" of the {-(-resolution // (1 << halvings))}^3 that were evaluated first"
        raise EmptyFieldError(
            f"the field is empty: its largest value {'found ' if halvings else ''}on the "
            f"{resolution + 1}^3 lattice is {values.highest + level:.4g}, not above the level "
            f"{level:.4g}; the shape is missing or thinner than a cell"
            + (coarsest if halvings else "")
        )
    vertices, faces = _surface(lattice, cells, points)
    return Mesh(vertices.cpu().numpy(), faces.cpu().numpy())


def drop_small_components(mesh: Mesh, min_volume_share: float) -> Mesh:
    """Removes connected pieces that enclose little volume.

    A piece is removed if its volume is less than `min_volume_share`, in [0, 1] (else ValueError),
    of that of the largest one. Meant for extracted meshes: pieces are faces that share vertices,
    and each is closed. Small cavities are filled too.
    """
    if not 0.0 <= min_volume_share <= 1.0:
        raise ValueError(f"min_volume_share must be in [0, 1], got {min_volume_share}")
    faces = mesh.faces
    piece = face_components(faces, len(mesh.vertices))  # (F,)
    volume = np.zeros(piece.max() + 1)
    for part in blocks(len(faces), FACES_AT_ONCE):
        a, b, c = (mesh.vertices[faces[part, i]].astype(np.float64) for i in range(3))
        volume += np.bincount(
            piece[part], np.einsum("ij,ij->i", a, np.cross(b, c)) / 6, minlength=len(volume)
        )
    volume = np.abs(volume)
    is_large = volume[piece] >= min_volume_share * volume.max()
    if is_large.all():
        return mesh
    faces = faces[is_large]
    used = np.zeros(len(mesh.vertices), dtype=bool)
    used[faces] = True
    return Mesh(mesh.vertices[used], (np.cumsum(used) - 1)[faces], mesh.to_source)


def _select_cells(
    field: LatticeField,
    lattice: Lattice,
    parents: Tensor | None,
    known: Points | None,
    probes: Probes | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[Tensor, Points]:
    """The cells of `lattice` that the surface crosses, and the values at their corners.

    With `probes`, also the cells that the surface may cross. Candidates are the halves of
    `parents`, ascending cells of the next coarser lattice (None: all cells), and the cells that the
    surface leads to from there. Values that are `known` are not evaluated again. Works in slabs of
    a few layers, and hands the layer of points between two slabs on.
    """
    plane, device, near = lattice.side**2, field.device, probes is not None
    selected, keys, values, missing, done = [], [], [], [], 0
    height = lattice.slab_height(device)
    slab = torch.empty((height + 1) * plane, device=device)
    # candidate cells of the slab, with a layer to either side
    candidates = torch.zeros((height + 2) * plane, dtype=torch.bool, device=device)
    # marks of the layer of points between two slabs: value computed, value returned
    shared, shared_returned = torch.zeros(2, plane, dtype=torch.bool, device=device)
    for first in range(0, lattice.cells, height):
        last = min(first + height, lattice.cells)
        start, end = first * plane, last * plane
        candidates.zero_()
        lattice.mark_halves(candidates, parents, first - 1, last + 1)
        cells = nonzero(candidates[plane : end - start + plane])
        marks = _corner_marks(cells, lattice, end + plane - start)
        marks[:plane] &= ~shared
        shared = marks[-plane:].clone()
        if known is not None:
            in_slab = between(known.keys, start, end + plane)
            index = known.keys[in_slab] - start
            slab[index] = known.values[in_slab]
            marks[index] = False
        unknown = nonzero(marks)
        slab[unknown] = field(lattice, unknown + start)
        case, is_selected = _classify((slab[cells + step] for step in lattice.corner_steps), near)
        if probes is not None:
            is_selected |= probes.contradict(lattice, cells + start, case)
        beyond = _cells_beyond_crossed_faces(cells, case, lattice) + plane
        missing.append(beyond[~candidates[beyond]] + (start - plane))
        done += len(cells)
        cells = cells[is_selected]
        marks = _corner_marks(cells, lattice, end + plane - start)
        marks[:plane] |= shared_returned
        shared_returned = marks[-plane:].clone()
        corners = nonzero(marks[:-plane])
        selected.append(cells + start)
        keys.append(corners + start)
        values.append(slab[corners])
        slab[:plane] = slab[end - start : end - start + plane].clone()
        if progress is not None:
            progress(done, lattice.cells**3 if parents is None else 8 * len(parents))
    points = Points(torch.cat(keys), torch.cat(values))
    outside = torch.cat(missing).unique()
    return _follow_surface(field, lattice, parents, torch.cat(selected), points, outside, near)


def _follow_surface(
    field: LatticeField,
    lattice: Lattice,
    parents: Tensor | None,
    selected: Tensor,
    points: Points,
    outside: Tensor,
    near: bool,
) -> tuple[Tensor, Points]:
    """`selected` cells and `points`, extended along the surface where it leaves the candidates.

    `outside` are the first cells of the walk, none of them a half of `parents`.
    """
    front, seen = outside, outside
    more, found = Points(points.keys[:0], points.values[:0]), [selected]
    while len(front) > 0:
        keys, corner = lattice.corners(front).unique(return_inverse=True)
        values = torch.full(keys.shape, torch.nan, device=keys.device)
        for store in (points, more):
            index, is_stored = find(store.keys, keys)
            values[is_stored] = store.values[index[is_stored]]
        unknown = values.isnan()
        values[unknown] = field(lattice, keys[unknown])
        more = more.merged(Points(keys[unknown], values[unknown]))
        case, is_selected = _classify(values[corner].T, near)
        found.append(front[is_selected])
        front = _cells_beyond_crossed_faces(front, case, lattice).unique()
        assert parents is not None, "the surface cannot leave a list of all cells"
        front = front[~(find(parents, lattice.parents(front))[1] | find(seen, front)[1])]
        seen = torch.cat([seen, front]).sort().values
    if len(seen) > 0:
        selected, points = torch.cat(found).sort().values, points.merged(more)
    return selected, points


def _classify(corner_values: Iterable[Tensor], near: bool) -> tuple[Tensor, Tensor]:
    """Case numbers (M,) of cells, and whether they are selected (M,) bool.

    `corner_values` gives the values (M,) of all cells at each of the eight corners in turn. A cell
    is selected if the surface crosses it or, with `near`, comes near it (see the module).
    """
    corners = iter(corner_values)
    value = next(corners)
    case = (value > 0).long()
    greatest = value
    least = torch.where(value == -torch.inf, torch.inf, value) if near else value
    for bit, value in enumerate(corners, start=1):
        case = case | (value > 0).long() << bit
        if near:
            greatest = value.clamp_min(greatest)
            least = torch.where(value == -torch.inf, torch.inf, value).clamp_max(least)
    is_selected = (case > 0) & (case < 255)
    if near:
        is_selected |= torch.minimum(least.abs(), greatest.abs()) < MARGIN * (greatest - least)
    return case, is_selected


def _cells_beyond_crossed_faces(cells: Tensor, case: Tensor, lattice: Lattice) -> Tensor:
    """The neighbours of `cells` across faces that the surface crosses; one may be there twice."""
    found = []
    for axis, end, mask in _FACES:
        corners = case & mask
        crossed = (corners != 0) & (corners != mask)
        found.append(cells[crossed] + (2 * end - 1) * lattice.steps[axis])
    return torch.cat(found)


def _corner_marks(cells: Tensor, lattice: Lattice, size: int) -> Tensor:
    """Marks (size,) bool of the points of a slab that are corners of `cells`."""
    marks = torch.zeros(size, dtype=torch.bool, device=cells.device)
    for step in lattice.corner_steps:
        marks[cells + step] = True
    return marks


def _surface(lattice: Lattice, cells: Tensor, points: Points) -> tuple[Tensor, Tensor]:
    """Vertices (V, 3) float32 and faces (F, 3) of the surface through `cells` of the fine lattice.

    There is a vertex for each edge of the lattice that the surface crosses.
    """
    plane, device = lattice.side**2, cells.device
    vertices, faces, count = [], [], 0
    height = lattice.slab_height(device)
    # index of the vertex on the edge between a point and the next one along each axis
    number = torch.empty(3, (height + 1) * plane, dtype=torch.int32, device=device)
    is_new = torch.empty(3, (height + 1) * plane, dtype=torch.bool, device=device)
    # vertices on edges along y and z in the layer between two slabs, -1 for none
    shared = torch.full((2, plane), -1, dtype=torch.int32, device=device)
    corner_steps = torch.tensor(lattice.corner_steps, device=device)
    for first in range(0, lattice.cells, height):
        start, end = first * plane, (first + height) * plane
        in_slab = cells[between(cells, start, end)] - start
        corners = between(points.keys, start, end + plane)
        slab = torch.full(number.shape[1:], -torch.inf, device=device)
        slab[points.keys[corners] - start] = points.values[corners]
        cell, edges = triangulate(
            torch.stack([slab[in_slab + step] for step in lattice.corner_steps], dim=1)
        )
        corner, axis = edge_corners(edges)
        edges = axis * len(slab) + in_slab[cell, None] + corner_steps[corner]  # (F, 3)
        is_new.zero_().view(-1)[edges] = True
        number[1:, :plane] = shared
        is_new[1:, :plane] &= shared < 0
        new = nonzero(is_new.view(-1))
        number.view(-1)[new] = torch.arange(
            count, count + len(new), dtype=torch.int32, device=device
        )
        shared = torch.where(is_new[1:, -plane:], number[1:, -plane:], -1)
        count += len(new)
        vertices.append(_vertices(lattice, slab, new // len(slab), new % len(slab), start))
        faces.append(number.view(-1)[edges])
    return torch.cat(vertices), torch.cat(faces)


def _vertices(lattice: Lattice, slab: Tensor, axis: Tensor, point: Tensor, start: int) -> Tensor:
    """Positions (M, 3) float32 at which the surface crosses edges of the lattice.

    An edge is given by its `axis` (M,) and its lower `point` (M,) in the slab whose first key is
    `start`.
    """
    step = torch.tensor(lattice.steps, device=slab.device)
    share = crossing(slab[point], slab[point + step[axis]])
    index = torch.stack(lattice.unravel(point + start), dim=1).double() - 1
    index[torch.arange(len(axis), device=axis.device), axis] += share
    return (index * (2 / lattice.resolution) - 1).clamp(-1, 1).float()
