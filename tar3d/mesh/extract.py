"""A scalar field on the cube [-1, 1]^3 -> a closed `Mesh` with outward winding, by marching cubes
from coarse to fine.

The field is a plain function of points, so this module knows no network. Outside the cube
everything is empty: a shape that touches the border is closed there. Refuses a field that is
nowhere inside (`EmptyFieldError`) or not finite.

A coarse lattice is evaluated everywhere, then cells are halved, again and again, where the surface
is or may be, until they have the size asked for (hierarchical decoding, as in FlashVDM, arXiv
2503.16302). Two rules say where that is:

    near    a cell is halved if, of its corners, the value next to the level is off it by less than MARGIN times the corners'
            range: were the field as steep beyond the cell as it is within, it would come to the level that near
    follow  where the surface leaves the listed cells the next one is listed too, on every lattice, so that a surface is found
            whole or not at all

So what can be missed is a piece of its own that no value and no slope of a coarser lattice betrays.
Everything else is what the dense lattice gives, vertex by vertex. Nothing as large as the fine
lattice exists: cells are lists, gone through in slabs of a few layers. All of it runs on the device
of the field. One of the mesh files that use torch: data workers must not import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tar3d.contracts import Mesh
from tar3d.mesh.lattice import Lattice, Points, between, find, nonzero
from tar3d.mesh.load import FACES_AT_ONCE, blocks, face_components
from tar3d.mesh.marching_cubes import CORNERS, crossing, edge_corners, triangulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# cells along an axis of the coarse lattice, at least: as many as the planes of the small tokenizer
COARSE = 48
# with 0.5, two of 37 test shapes miss a speck at 256^3, with 0.75 and 1 none (docs/speed.md)
MARGIN = 0.75
_FACES = tuple(
    (axis, end, sum(1 << c for c in range(8) if CORNERS[c][axis] == end))
    for axis in range(3)
    for end in (0, 1)
)


class EmptyFieldError(ValueError):
    """The field exceeds the level at no lattice point that was asked, so there is no surface to
    extract."""


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

    `field` maps (M, 3) float32 points on `device`, M <= `chunk`, to (M,) values. It is asked at points of the lattice
    -1 + 2 i / resolution, a cell being 2 / resolution wide: at all that make a coarse lattice of at least `coarse`, less than
    twice as many cells along each axis, and at finer ones where the surface may be. `coarse` = `resolution` asks everywhere.
    `progress` is called with (cells done, cells in all) of each lattice in turn, the finest being most of the work.
    """
    if resolution < 1 or chunk < 1 or coarse < 1:
        raise ValueError(
            f"extraction needs resolution, chunk and coarse >= 1, got {resolution}, {chunk} and {coarse}"
        )
    device = torch.device(device)
    halvings = 0
    while resolution >= coarse << (halvings + 1):
        halvings += 1
    asker = _Asker(field, resolution, float(level), chunk, device)
    cells, points = None, None
    for halving in range(halvings, -1, -1):
        lattice = Lattice(resolution, 1 << halving)
        if points is not None:
            points = lattice.from_coarser(points)
        cells, points = _survey(asker, lattice, cells, points, near=halving > 0, progress=progress)
    if len(cells) == 0:
        raise EmptyFieldError(
            f"the field is empty: its largest value {'asked of' if halvings else 'on'} the {resolution + 1}^3 lattice is "
            f"{asker.highest + level:.4g}, not above the level {level:.4g}; the shape is missing or thinner than a cell"
            + (
                f" of the {-(-resolution // (1 << halvings))}^3 that were looked at first"
                if halvings
                else ""
            )
        )
    vertices, faces = _surface(lattice, cells, points)
    return Mesh(vertices.cpu().numpy(), faces.cpu().numpy())


def drop_small_components(mesh: Mesh, min_volume_share: float) -> Mesh:
    """Removes the connected pieces that enclose less than `min_volume_share` (0 to 1) of the volume
    of the largest one.

    Meant for extracted meshes: pieces are faces that share vertices, and each is closed. Small
    cavities are filled too.
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
    kept = volume[piece] >= min_volume_share * volume.max()
    if kept.all():
        return mesh
    kept = faces[kept]
    used = np.zeros(len(mesh.vertices), dtype=bool)
    used[kept] = True
    return Mesh(mesh.vertices[used], (np.cumsum(used) - 1)[kept], mesh.to_source)


class _Asker:
    """The field at lattice points: checked, relative to the level, -inf outside the cube."""

    def __init__(
        self,
        field: Callable[[Tensor], Tensor],
        resolution: int,
        level: float,
        chunk: int,
        device: torch.device,
    ) -> None:
        self.field, self.level, self.chunk, self.device = field, level, chunk, device
        self.axis = (
            torch.arange(resolution + 1, dtype=torch.float64, device=device) * 2 / resolution - 1
        ).float()
        self.highest = float("-inf")

    def __call__(self, lattice: Lattice, keys: Tensor) -> Tensor:
        """(M,) keys -> (M,) float32"""
        index, there = lattice.fine_indices(keys)
        index = index[there]
        answers = [
            self._ask(self.axis[index[start : start + self.chunk]])
            for start in range(0, len(index), self.chunk)
        ]
        values = torch.full(keys.shape, -torch.inf, device=self.device)
        if answers:
            answer = torch.cat(answers) - self.level
            self.highest = max(self.highest, float(answer.max()))
            if bad := int((~answer.isfinite()).sum()):
                raise ValueError(
                    f"the field has {bad:,} NaN or infinite values at {len(answer):,} lattice points"
                )
            values[there] = answer
        return values

    def _ask(self, points: Tensor) -> Tensor:
        answer = torch.as_tensor(self.field(points), device=self.device)
        if answer.shape != points.shape[:1]:
            raise ValueError(
                f"the field must map {tuple(points.shape)} points to {tuple(points.shape[:1])} values, "
                f"got {tuple(answer.shape)}"
            )
        return answer.float()


def _survey(
    asker: _Asker,
    lattice: Lattice,
    parents: Tensor | None,
    known: Points | None,
    near: bool,
    progress: Callable[[int, int], None] | None,
) -> tuple[Tensor, Points]:
    """Those halves of `parents`, ascending cells of the next coarser lattice (None: all cells),
    that the surface crosses or, with `near`, may cross, and those that it leads to from them, with
    the values at their corners. What is `known` of the lattice is not asked again."""
    plane, device = lattice.side**2, asker.device
    kept, keys, values, missing, done = [], [], [], [], 0
    height = lattice.slab_height(device)
    slab = torch.empty((height + 1) * plane, device=device)
    listed = torch.zeros(
        (height + 2) * plane, dtype=torch.bool, device=device
    )  # cells, with a layer to either side
    # Of the layer of points between two slabs: which values are there, and which of them are kept.
    shared, shared_kept = torch.zeros(2, plane, dtype=torch.bool, device=device)
    for first in range(0, lattice.cells, height):
        last = min(first + height, lattice.cells)
        start, end = first * plane, last * plane
        listed.zero_()
        lattice.mark_halves(listed, parents, first - 1, last + 1)
        here = nonzero(listed[plane : end - start + plane])
        wanted = _corner_marks(here, lattice, end + plane - start)
        wanted[:plane] &= ~shared
        shared = wanted[-plane:].clone()
        if known is not None:
            there = between(known.keys, start, end + plane)
            at = known.keys[there] - start
            slab[at] = known.values[there]
            wanted[at] = False
        wanted = nonzero(wanted)
        slab[wanted] = asker(lattice, wanted + start)
        case, chosen = _judge((slab[here + step] for step in lattice.corner_steps), near)
        ahead = _ahead(here, case, lattice) + plane
        missing.append(ahead[~listed[ahead]] + (start - plane))
        done += len(here)
        here = here[chosen]
        marks = _corner_marks(here, lattice, end + plane - start)
        marks[:plane] |= shared_kept
        shared_kept = marks[-plane:].clone()
        corners = nonzero(marks[:-plane])
        kept.append(here + start)
        keys.append(corners + start)
        values.append(slab[corners])
        slab[:plane] = slab[end - start : end - start + plane].clone()
        if progress is not None:
            progress(done, lattice.cells**3 if parents is None else 8 * len(parents))
    chosen, points = torch.cat(kept), Points(torch.cat(keys), torch.cat(values))
    return _follow(asker, lattice, parents, chosen, points, torch.cat(missing).unique(), near)


def _follow(
    asker: _Asker,
    lattice: Lattice,
    parents: Tensor | None,
    chosen: Tensor,
    points: Points,
    ahead: Tensor,
    near: bool,
) -> tuple[Tensor, Points]:
    """`chosen` and `points` with what is found by walking on from the cells `ahead`, which are no
    halves of `parents`."""
    seen, more, found = ahead, Points(points.keys[:0], points.values[:0]), [chosen]
    while len(ahead) > 0:
        keys, place = lattice.corners(ahead).unique(return_inverse=True)
        values = torch.full(keys.shape, torch.nan, device=keys.device)
        for store in (points, more):
            at, there = find(store.keys, keys)
            values[there] = store.values[at[there]]
        unknown = values.isnan()
        values[unknown] = asker(lattice, keys[unknown])
        more = more.merged(Points(keys[unknown], values[unknown]))
        case, is_chosen = _judge(values[place].T, near)
        found.append(ahead[is_chosen])
        ahead = _ahead(ahead, case, lattice).unique()
        ahead = ahead[~(find(parents, lattice.parents(ahead))[1] | find(seen, ahead)[1])]
        seen = torch.cat([seen, ahead]).sort().values
    if len(seen) > 0:
        chosen, points = torch.cat(found).sort().values, points.merged(more)
    return chosen, points


def _judge(corner_values: Iterable[Tensor], near: bool) -> tuple[Tensor, Tensor]:
    """From the values of many cells at each of the eight corners: their case numbers (M,), and
    which of them are chosen (M,)."""
    case, least, greatest = 0, torch.inf, -torch.inf
    for bit, value in enumerate(corner_values):
        case = case | (value > 0).long() << bit
        if near:
            greatest = value.clamp_min(greatest)
            least = torch.where(value == -torch.inf, torch.inf, value).clamp_max(least)
    chosen = (case > 0) & (case < 255)
    if near:
        chosen |= torch.minimum(least.abs(), greatest.abs()) < MARGIN * (greatest - least)
    return case, chosen


def _ahead(cells: Tensor, case: Tensor, lattice: Lattice) -> Tensor:
    """The cells behind those faces of `cells` that the surface crosses, some of them more than
    once."""
    found = []
    for axis, end, mask in _FACES:
        of_face = case & mask
        found.append(
            cells[(of_face != 0) & (of_face != mask)] + (2 * end - 1) * lattice.steps[axis]
        )
    return torch.cat(found)


def _corner_marks(cells: Tensor, lattice: Lattice, size: int) -> Tensor:
    """(size,) bool: which points of a slab are corners of `cells`."""
    marks = torch.zeros(size, dtype=torch.bool, device=cells.device)
    for step in lattice.corner_steps:
        marks[cells + step] = True
    return marks


def _surface(lattice: Lattice, cells: Tensor, points: Points) -> tuple[Tensor, Tensor]:
    """Vertices (V, 3) float32 and faces (F, 3) of the surface through `cells` of the fine lattice,
    a vertex for each edge of the lattice that it crosses."""
    plane, device = lattice.side**2, cells.device
    vertices, faces, count = [], [], 0
    height = lattice.slab_height(device)
    # For each axis and point the number of the vertex on the edge between the point and the next
    # one.
    number = torch.empty(3, (height + 1) * plane, dtype=torch.int32, device=device)
    is_new = torch.empty(3, (height + 1) * plane, dtype=torch.bool, device=device)
    shared = torch.full(
        (2, plane), -1, dtype=torch.int32, device=device
    )  # numbers for y and z on the layer between two slabs
    for first in range(0, lattice.cells, height):
        start, end = first * plane, (first + height) * plane
        here, there = (
            cells[between(cells, start, end)] - start,
            between(points.keys, start, end + plane),
        )
        slab = torch.full(number.shape[1:], -torch.inf, device=device)
        slab[points.keys[there] - start] = points.values[there]
        cell, edges = triangulate(
            torch.stack([slab[here + step] for step in lattice.corner_steps], dim=1)
        )
        corner, axis = edge_corners(edges)
        edges = (
            axis * len(slab)
            + here[cell, None]
            + torch.tensor(lattice.corner_steps, device=device)[corner]
        )  # (F, 3)
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
    """(M, 3) float32 places of the crossings of edges that leave points of the slab along axes."""
    step = torch.tensor(lattice.steps, device=slab.device)
    share = crossing(slab[point], slab[point + step[axis]])
    index = torch.stack(lattice.unravel(point + start), dim=1).double() - 1
    index[torch.arange(len(axis), device=axis.device), axis] += share
    return (index * (2 / lattice.resolution) - 1).clamp(-1, 1).float()
