"""The tokenizer suite: the paper's encoder (`cross_attention`) against `plane_pool`.

    encode_*     surface points -> tokens
    train_*      a whole training step with the codebook: forward, loss, backward, clipping,
                 optimizers, codebook
    pool_*       the encoder of plane_pool, forward and backward: in its plain form, a sum for each
                 plane, and as it is
    points_*     growth over the number of surface points: the encoder alone, forward and backward
    grid_*       growth over the grid side R: the same
    memory_*     one encoder alone in its process, for the peak memory: as in points_* and grid_*,
                 and in training

The paper's encoder has eight layers of cross-attention, plane_pool has none.

"full" compares configs/vqvae3d.yaml with configs/vqvae3d_fast.yaml, whose decoders are the same;
"tiny" is vqvae3d_tiny.yaml with either encoder, and small enough to be run as a test. The points
are a sphere's; the precision is that of training (bfloat16 autocast on CUDA), and float32 for
encode_*, as in the scripts. A CPU takes minutes for a step of cross_attention at 81,920 points, so
there the batch is 1 and one call is timed after one to warm up, or the first for the peak memory.

`flops` are those of `VQVAE.flops`, times three with backward. train_* notes `estimated_hours`: what
the whole recipe would take at the rate just measured; on CUDA it has the goal of a quarter of the
hours of the paper's recipe.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from benchmarks.measure import Case, Work
from benchmarks.suites.gpt_step import autocast, finish_step, optimizers_of
from tar3d import config as configuration
from tar3d.config import TokenizerConfig, VQVAEConfig
from tar3d.runtime import resolve_precision
from tar3d.tokenizer.encoder import PlanePoolEncoder
from tar3d.tokenizer.loss import tokenizer_loss
from tar3d.tokenizer.planes import plane_cells
from tar3d.tokenizer.vqvae import VQVAE, build_encoder

if TYPE_CHECKING:
    from collections.abc import Callable

ENCODERS = ("cross_attention", "plane_pool")  # the first is what the other is compared with
FULL_CONFIGS = {
    "cross_attention": "configs/vqvae3d.yaml",
    "plane_pool": "configs/vqvae3d_fast.yaml",
}
TINY_CONFIG = "configs/vqvae3d_tiny.yaml"
POINTS, GRIDS = (8192, 16_384, 32_768, 81_920), (16, 32, 48)
CPU_GRID_POINTS = 16_384  # of the growth over R on a CPU
TRAIN_BATCH = {"tiny": {"cpu": 2, "cuda": 2}, "full": {"cpu": 1, "cuda": 8}}
# Of the paper's recipe on an H200: the lower end of an estimate by arithmetic (docs/speed.md).
PAPER_HOURS = 59
GOAL_SHARE = 1 / 4  # of those hours: the goal of plane_pool


class PlainPlanePoolEncoder(PlanePoolEncoder):
    """The same network written plainly: `to_plane` at every point, and planes one by one.

    The encoder is tested against it, and timed against it here.
    """

    def forward(self, surface: Tensor) -> Tensor:
        B, G = len(surface), self.pool_size
        cells = plane_cells(surface[..., :3], G)  # (3, B, N)
        x = self.point_in(
            torch.cat([self.fourier(surface[..., :3]), surface[..., 3:]], dim=-1)
        )  # (B, N, C)
        neighbourhood = (
            sum(pool_to_cells(x, c, G)[0].gather(1, c[..., None].expand_as(x)) for c in cells) / 3
        )
        x = x + self.point_local(torch.cat([x, neighbourhood.to(x.dtype)], dim=-1))
        planes = []
        for features, cell in zip(self.to_plane(x).chunk(3, dim=-1), cells, strict=True):
            mean, count = pool_to_cells(features, cell, G)
            planes.append(torch.cat([mean, self.density(count, surface.shape[1])], dim=-1))
        planes = rearrange(torch.stack(planes, dim=1), "b p (r c) d -> (b p) d r c", r=G)
        x = rearrange(self.reduce(planes), "(b p) d r c -> b p r c d", b=B) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm_out(x)


def pool_to_cells(features: Tensor, cells: Tensor, grid_size: int) -> tuple[Tensor, Tensor]:
    """Means of features over cells, and the number of points of each cell.

    (B, N, C), (B, N) -> (B, G^2, C) float32, (B, G^2, 1).
    """
    B, N, C = features.shape
    cells_per_item = grid_size * grid_size
    flat = (cells + torch.arange(B, device=cells.device)[:, None] * cells_per_item).reshape(-1)
    total = features.new_zeros(B * cells_per_item, C, dtype=torch.float32)
    total = total.index_add(0, flat, features.reshape(B * N, C).float())
    count = torch.bincount(flat, minlength=B * cells_per_item).to(torch.float32)[:, None]
    mean = total / count.clamp_min(1.0)
    return mean.reshape(B, cells_per_item, C), count.reshape(B, cells_per_item, 1)


def encode(size: str, points: int, device: torch.device) -> dict[str, Work]:
    def one(encoder: str) -> Work:
        config = _config(size, encoder)
        model, surface = VQVAE(config.tokenizer).to(device).eval(), sphere(1, points, device)

        def call() -> None:
            model.tokenize(surface)

        return Work(
            call,
            1,
            "float32",
            _settings(config.tokenizer, 1, points),
            flops=model.flops(points, 0) - model.decoder.flops(),
        )

    return {encoder: one(encoder) for encoder in ENCODERS}


def train(size: str, points: int, device: torch.device) -> dict[str, Work]:
    return {encoder: train_one(encoder, size, points, device) for encoder in ENCODERS}


def train_one(encoder: str, size: str, points: int, device: torch.device) -> Work:
    config = _config(size, encoder)
    t, batch = config.train, TRAIN_BATCH[size][device.type]
    work = tokenizer_step(config, batch, points, device)
    goal = (
        batch / needed_rate(config)
        if (encoder, size, device.type) == ("plane_pool", "full", "cuda")
        else None
    )
    reduced = "" if batch == t.batch_size else f"batch {batch} instead of {t.batch_size}"
    return replace(
        work,
        settings=work.settings | _settings(config.tokenizer, batch, points),
        reduced=reduced,
        whole_run=shapes_of_run(config),
        goals={} if goal is None else {"seconds": goal},
    )


def tokenizer_step(
    config: VQVAEConfig, batch: int, surface_points: int, device: torch.device
) -> Work:
    """A step of the second stage (with the codebook), as train_vqvae.py does it."""
    t = config.train
    model = VQVAE(config.tokenizer).to(device).train()
    optimizers = optimizers_of(model, config.optim)
    precision = resolve_precision(t.precision, device.type)
    surface, queries = sphere(batch, surface_points, device), t.volume_points + t.near_points
    points = torch.rand(batch, queries, 3, device=device) * 2 - 1
    inside = points.norm(dim=-1) < 0.7
    is_near = (torch.arange(queries, device=device) >= t.volume_points).expand(batch, -1)
    generator = torch.Generator().manual_seed(0)

    def call() -> None:
        with autocast(device, precision):
            output = model(surface, points, True)
        loss = tokenizer_loss(
            output.logits,
            inside,
            is_near,
            output.commitment,
            near_weight=t.near_weight,
            commitment_weight=t.commitment_weight,
        )
        finish_step(model, optimizers, loss.total, config.optim)
        model.quantizer.step(generator)

    settings = {
        "query_points": queries,
        "million_parameters": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
    }
    return Work(
        call, batch, precision, settings, flops=3 * batch * model.flops(surface_points, queries)
    )


def shapes_of_run(config: VQVAEConfig) -> int:
    return config.train.batch_size * (config.train.autoencoder_steps + config.train.codebook_steps)


def needed_rate(config: VQVAEConfig) -> float:
    """Shapes a second with which the run takes the goal's hours."""
    return shapes_of_run(config) / (GOAL_SHARE * PAPER_HOURS * 3600)


def pool(size: str, points: int, device: torch.device) -> dict[str, Work]:
    config = _config(size, "plane_pool").tokenizer
    return {
        "plain": _forward_backward(PlainPlanePoolEncoder(config), config, points, device),
        "bags": _forward_backward(PlanePoolEncoder(config), config, points, device),
    }


def encoders(
    size: str, points: int | None, grid: int | None, device: torch.device
) -> dict[str, Work]:
    return {encoder: encoder_one(encoder, size, points, grid, device) for encoder in ENCODERS}


def encoder_one(
    encoder: str, size: str, points: int | None, grid: int | None, device: torch.device
) -> Work:
    """Forward and backward of an encoder; None takes the config's grid, or its points.

    On a CPU there are fewer points than the full config has.
    """
    config = _config(size, encoder)
    tokenizer, reduced = config.tokenizer, ""
    if grid is not None:
        tokenizer = replace(tokenizer, grid_size=grid)
    if points is None:
        points = config.train.surface_points
        if size == "full" and device.type == "cpu":
            points, reduced = (
                CPU_GRID_POINTS,
                f"{CPU_GRID_POINTS} surface points instead of {points}",
            )
    return replace(
        _forward_backward(build_encoder(tokenizer), tokenizer, points, device), reduced=reduced
    )


def _forward_backward(
    encoder: torch.nn.Module, config: TokenizerConfig, points: int, device: torch.device
) -> Work:
    encoder, surface = encoder.to(device), sphere(1, points, device)
    precision = resolve_precision("auto", device.type)
    gradient = torch.randn(1, 3, config.grid_size, config.grid_size, config.width, device=device)
    parameters = list(encoder.parameters())

    def call() -> None:
        with autocast(device, precision):
            out = encoder(surface)
        torch.autograd.grad(out, parameters, gradient.to(out.dtype))

    return Work(call, 1, precision, _settings(config, 1, points), flops=3 * encoder.flops(points))


def sphere(batch: int, points: int, device: torch.device) -> torch.Tensor:
    """(batch, points, 6): a sphere, whose points are its normals."""
    normals = F.normalize(torch.randn(batch, points, 3, device=device), dim=-1)
    return torch.cat([0.7 * normals, normals], dim=-1)


def _config(size: str, encoder: str) -> VQVAEConfig:
    if size == "full":
        return configuration.load(VQVAEConfig, FULL_CONFIGS[encoder])
    return configuration.load(VQVAEConfig, TINY_CONFIG, [f"tokenizer.encoder={encoder}"])


def _settings(config: TokenizerConfig, batch: int, points: int) -> dict[str, object]:
    return {
        "batch": batch,
        "surface_points": points,
        "grid_size": config.grid_size,
        "encoder": config.encoder,
        "encoder_layers": config.encoder_layers,
    }


def _cases(
    name: str, build: Callable[[torch.device], Work | dict[str, Work]], cpu: tuple[int, int]
) -> tuple[Case, Case]:
    """A case for the CPU, with `cpu` warm-up calls and repeats, and one for a GPU.

    On a GPU a call is short, and the first ones choose kernels.
    """
    return (
        Case(name, "full", "shapes", build, repeats=cpu[1], warmup=cpu[0], devices=("cpu",)),
        Case(name, "full", "shapes", build, repeats=5, warmup=2, devices=("cuda",)),
    )


def _tiny(name: str, build: Callable[[torch.device], Work | dict[str, Work]]) -> Case:
    return Case(name, "tiny", "shapes", build)


ONCE, TWICE = (0, 1), (1, 1)
CASES = (
    *_cases("train_81920", partial(train, "full", 81_920), TWICE),
    *_cases("encode_81920", partial(encode, "full", 81_920), TWICE),
    *_cases("pool_81920", partial(pool, "full", 81_920), (1, 5)),
    *(
        case
        for n in POINTS
        for case in _cases(f"points_{n}", partial(encoders, "full", n, None), TWICE)
    ),
    *(
        case
        for r in GRIDS
        for case in _cases(f"grid_{r}", partial(encoders, "full", None, r), TWICE)
    ),
    *(
        case
        for e in reversed(ENCODERS)
        for case in _cases(f"memory_train_{e}", partial(train_one, e, "full", 81_920), ONCE)
    ),
    *(
        case
        for e in reversed(ENCODERS)
        for n in POINTS
        for case in _cases(f"memory_points_{n}_{e}", partial(encoder_one, e, "full", n, None), ONCE)
    ),
    *(
        case
        for e in reversed(ENCODERS)
        for r in GRIDS
        for case in _cases(f"memory_grid_{r}_{e}", partial(encoder_one, e, "full", None, r), ONCE)
    ),
    _tiny("train_1024", partial(train, "tiny", 1024)),
    _tiny("encode_1024", partial(encode, "tiny", 1024)),
    _tiny("pool_4096", partial(pool, "tiny", 4096)),
    _tiny("points_1024", partial(encoders, "tiny", 1024, None)),
    _tiny("grid_8", partial(encoders, "tiny", 1024, 8)),
    _tiny("memory_plane_pool", partial(encoder_one, "plane_pool", "tiny", 1024, None)),
)
