"""The extraction suite: planes -> mesh, with the dense lattice as baseline.

    compare_*   every point of the lattice, and coarse to fine, as the scripts do it
    growth_*    coarse to fine alone in its process: time and peak memory over the number of cells
                along an axis
    planes      float32 planes, and float16 ones as --low-vram has them
    query       points through VQVAE.query, and through the OccupancyField that extraction asks

"tiny" extracts a procedural shape as the shipped tokenizer rebuilds it: the only case without
random weights, whose fields have no surface or nothing but specks. "full" has no trained weights:
its field is a bumpy ball and a millionth of the random head's output for random planes, so that a
point costs what it would cost and the surface is smooth. `query_share` is
of the (resolution + 1)^3 points of the dense lattice.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Case, Work
from tar3d import checkpoint
from tar3d import config as configuration
from tar3d.config import VQVAEConfig
from tar3d.contracts import Triplane
from tar3d.data.toy.shapes import generate
from tar3d.mesh.extract import COARSE, extract
from tar3d.mesh.points import sample_surface
from tar3d.pipeline import queries_at_once
from tar3d.tokenizer.field import OccupancyField
from tar3d.tokenizer.vqvae import VQVAE

if TYPE_CHECKING:
    from collections.abc import Callable

FULL_CONFIG, SHIPPED = "configs/vqvae3d.yaml", "pretrained/tiny"
# Index and seed of the procedural shape, and how many of its points are encoded.
SHAPE, SURFACE_POINTS = (1, 0), 8192
POINTS = 1 << 17  # of the case `query`
# Radians a unit, and units: a surface of about 5 square units, as objects have.
BUMPS, BUMP_HEIGHT = 12.0, 0.06


class Field:
    """The occupancy of planes, counting the points.

    With `is_ball` it is a bumpy ball at the same cost.
    """

    def __init__(self, head: torch.nn.Module, planes: Tensor, is_ball: bool) -> None:
        self.occupancy, self.is_ball, self.queries = OccupancyField(head, planes), is_ball, 0

    def __call__(self, points: Tensor) -> Tensor:
        self.queries += len(points)
        logits = self.occupancy(points)
        if not self.is_ball:
            return logits
        return (
            0.6
            - points.norm(dim=1)
            + BUMP_HEIGHT * torch.sin(BUMPS * points).prod(dim=1)
            + 1e-6 * logits
        )


def model_and_planes(size: str, device: torch.device) -> tuple[VQVAE, Tensor]:
    """The tokenizer and the planes (3, C, S, S) of a shape."""
    if size == "full":
        config = configuration.load(VQVAEConfig, FULL_CONFIG).tokenizer
        side = config.grid_size * 2**config.upsample_stages
        vqvae = VQVAE(config)
        # Only the head works here; the rest would be half a gigabyte of the peak memory that is
        # measured.
        vqvae.encoder = vqvae.decoder = torch.nn.Identity()
        return vqvae.eval().to(device), torch.randn(
            3, config.plane_channels, side, side, device=device
        )
    vqvae = checkpoint.load_tokenizer(SHIPPED).eval().to(device)
    surface = sample_surface(generate(*SHAPE).mesh, SURFACE_POINTS, np.random.default_rng(0))
    with torch.inference_mode():
        return vqvae, vqvae.decode(
            vqvae.tokenize(torch.from_numpy(surface).to(device)[None])
        ).planes[0]


def extraction(field: Field, side: int, resolution: int, dense: bool, device: torch.device) -> Work:
    coarse = resolution if dense else COARSE
    chunk = queries_at_once(device)

    @torch.inference_mode()
    def call() -> dict[str, float | int]:
        field.queries = 0
        mesh = extract(field, resolution, chunk=chunk, coarse=coarse, device=device)
        return {
            "queries": field.queries,
            "query_share": field.queries / (resolution + 1) ** 3,
            "faces": len(mesh.faces),
        }

    settings = {
        "resolution": resolution,
        "coarse": coarse,
        "chunk": chunk,
        "plane_side": side,
        "field": "bumpy ball" if field.is_ball else "shipped tokenizer, procedural shape",
    }
    return Work(call, 1, "float32", settings)


def compare(resolution: int, size: str, device: torch.device) -> dict[str, Work]:
    vqvae, planes = model_and_planes(size, device)
    field = Field(vqvae.occupancy, planes, size == "full")
    return {
        name: extraction(field, planes.shape[-1], resolution, dense, device)
        for name, dense in (("dense", True), ("coarse to fine", False))
    }


def growth(resolution: int, size: str, device: torch.device) -> Work:
    vqvae, planes = model_and_planes(size, device)
    return extraction(
        Field(vqvae.occupancy, planes, size == "full"), planes.shape[-1], resolution, False, device
    )


def plane_types(resolution: int, size: str, device: torch.device) -> dict[str, Work]:
    vqvae, planes = model_and_planes(size, device)
    return {
        str(p.dtype).removeprefix("torch."): extraction(
            Field(vqvae.occupancy, p, size == "full"), p.shape[-1], resolution, False, device
        )
        for p in (planes, planes.half())
    }


def query(size: str, device: torch.device) -> dict[str, Work]:
    """Neighbouring points of a lattice, in the numbers in which extraction asks for them."""
    vqvae, planes = model_and_planes(size, device)
    chunk = queries_at_once(device)
    triplane, field = Triplane(planes[None]), OccupancyField(vqvae.occupancy, planes)
    calls = max(1, POINTS // chunk)
    axis = torch.linspace(-1, 1, 257, device=device)
    points = torch.cartesian_prod(axis[128:], axis[:64], axis)[:chunk]

    def repeated(ask: Callable[[], Tensor]) -> Work:
        @torch.inference_mode()
        def call() -> None:
            for _ in range(calls):
                ask()

        return Work(
            call, calls * chunk, "float32", {"chunk": chunk, "plane_side": planes.shape[-1]}
        )

    return {
        "VQVAE.query": repeated(lambda: vqvae.query(triplane, points[None])),
        "OccupancyField": repeated(lambda: field(points)),
    }


def _compare(resolution: int, size: str, repeats: int, warmup: int) -> Case:
    return Case(
        f"compare_{resolution}", size, "meshes", partial(compare, resolution, size), repeats, warmup
    )


CASES = (
    _compare(384, "tiny", 1, 0),
    _compare(384, "full", 1, 0),
    *(
        Case(
            f"growth_{resolution}",
            size,
            "meshes",
            partial(growth, resolution, size),
            repeats=1,
            warmup=0,
        )
        for size in ("tiny", "full")
        for resolution in (1024, 512, 256, 128)
    ),
    _compare(128, "tiny", 3, 1),
    _compare(256, "tiny", 2, 0),
    _compare(512, "tiny", 1, 0),
    _compare(128, "full", 2, 1),
    *(Case("query", size, "points", partial(query, size), repeats=10) for size in ("tiny", "full")),
    *(
        Case("planes", size, "meshes", partial(plane_types, 256, size), repeats=3)
        for size in ("tiny", "full")
    ),
)
