"""Simplification: edge collapse by the quadric error metric (Garland and Heckbert, SIGGRAPH 1997).

The algorithm is libigl's. A closed mesh stays closed.
"""

from __future__ import annotations

import numpy as np

from tar3d.contracts import Mesh

LEAST_FACES = 4  # a tetrahedron's


def simplify(mesh: Mesh, faces: int) -> Mesh:
    """`mesh` with at most `faces` faces; itself if it has no more.

    More remain where fewer would change its pieces or holes. Raises ValueError for fewer faces than
    a tetrahedron has, and for a mesh with an edge of more than two faces.
    """
    if faces < LEAST_FACES:
        raise ValueError(
            f"a mesh cannot have {faces} faces: ask for {LEAST_FACES}, a tetrahedron's, or more"
        )
    if len(mesh.faces) <= faces:
        return mesh
    import igl  # takes a quarter of a second to import, which run.py needs only here

    if not igl.is_edge_manifold(mesh.faces)[0]:
        raise ValueError(
            "a mesh in which an edge has more than two faces cannot be simplified: repair it first"
        )
    vertices, triangles, _, _ = igl.qslim(
        np.asfortranarray(mesh.vertices, dtype=np.float64),
        np.asfortranarray(mesh.faces, dtype=np.int32),
        faces,
    )
    return Mesh(vertices, triangles, mesh.to_source)
