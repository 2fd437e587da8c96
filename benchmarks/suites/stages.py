"""The suite of stages: the cost of each, from surface points to a mesh.

    encode       surface points -> tokens                 decode      tokens -> planes
    extract_64   planes -> mesh on 64^3 cells             extract_128 the same on 128^3
    generate     one image -> tokens, guidance on

"tiny" are configs/*_tiny.yaml, "full" those of the paper (R 32, 3,072 tokens, GPT-B). Weights are
random and inputs have the right sizes; the surface that is extracted is a ball's. Everything is
float32, as in the scripts. Decoding late in a long sequence is in the suite decode, training in the
suites train and tokenizer. Frozen image encoders are not run: the full GPT's conditions are random
embeddings.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.measure import Case, Work
from benchmarks.suites.tokenizer import sphere
from tar3d import config as configuration
from tar3d.config import GPTRunConfig, VQVAEConfig
from tar3d.contracts import Condition, Tokens
from tar3d.gpt.engine import Engine
from tar3d.gpt.generate import generate
from tar3d.gpt.model import GPT
from tar3d.mesh.extract import drop_small_components, extract
from tar3d.pipeline import MIN_COMPONENT_SHARE, queries_at_once
from tar3d.tokenizer.field import OccupancyField
from tar3d.tokenizer.vqvae import VQVAE

CONFIGS = {
    "tiny": ("configs/vqvae3d_tiny.yaml", "configs/gpt_i23d_tiny.yaml", "GPT-tiny"),
    "full": ("configs/vqvae3d.yaml", "configs/gpt_i23d.yaml", "GPT-B"),
}
INFERENCE_POINTS = {"tiny": 8192, "full": 81_920}
# Guidance scale of every timed generation; guidance doubles the rows.
GUIDANCE = 3.0


def encode(size: str, device: torch.device) -> Work:
    vqvae, points = _vqvae(size, device).eval(), INFERENCE_POINTS[size]
    surface = sphere(1, points, device)
    return Work(
        _quietly(lambda: vqvae.tokenize(surface)),
        1,
        "float32",
        {"batch": 1, "surface_points": points},
    )


def decode(size: str, device: torch.device) -> Work:
    vqvae = _vqvae(size, device).eval()
    ids = torch.randint(vqvae.config.codebook_size, (1, vqvae.config.num_tokens), device=device)
    return Work(
        _quietly(lambda: vqvae.decode(Tokens(ids))),
        1,
        "float32",
        {"batch": 1, "tokens": ids.shape[1]},
    )


def extract_surface(resolution: int, size: str, device: torch.device) -> Work:
    """Extraction as the pipeline does it, with the removal of floaters.

    The surface is a ball's at the cost of the head: random weights alone give a field without one,
    or only specks.
    """
    vqvae = _vqvae(size, device).eval()
    side = vqvae.config.grid_size * 2**vqvae.config.upsample_stages
    field = OccupancyField(
        vqvae.occupancy, torch.randn(3, vqvae.config.plane_channels, side, side, device=device)
    )

    @torch.inference_mode()
    def call() -> dict[str, float | int]:
        mesh = extract(
            lambda points: 0.7 - points.norm(dim=1) + 1e-6 * field(points),
            resolution,
            chunk=queries_at_once(device),
            device=device,
        )
        return {"faces": len(drop_small_components(mesh, MIN_COMPONENT_SHARE).faces)}

    return Work(call, 1, "float32", {"batch": 1, "resolution": resolution, "plane_side": side})


def generate_tokens(batch: int, size: str, device: torch.device) -> Work:
    config, gpt, condition = _gpt_and_condition(size, batch, device)
    codes = F.normalize(
        torch.randn(gpt.config.codebook_size, config.gpt.code_predictor_dim or 1, device=device),
        dim=-1,
    )
    engine = Engine(gpt)  # made once, as a pipeline does
    call = _quietly(
        lambda: generate(
            gpt, condition, config.sampling, list(range(batch)), codes=codes, engine=engine
        )
    )
    settings = _gpt_settings(config, batch)
    return Work(
        call,
        batch * gpt.config.num_tokens,
        "float32",
        settings | {"cfg_scale": config.sampling.cfg_scale},
    )


def _vqvae_config(size: str) -> VQVAEConfig:
    return configuration.load(VQVAEConfig, CONFIGS[size][0])


def _gpt_config(size: str) -> GPTRunConfig:
    _, path, name = CONFIGS[size]
    return configuration.load_gpt_run(path, name, _vqvae_config(size).tokenizer)


def _gpt_settings(config: GPTRunConfig, batch: int) -> dict[str, object]:
    return {"batch": batch, "tokens": config.gpt.num_tokens, "prefix": config.gpt.condition_tokens}


def _vqvae(size: str, device: torch.device) -> VQVAE:
    return VQVAE(_vqvae_config(size).tokenizer).to(device)


def _gpt_and_condition(
    size: str, batch: int, device: torch.device
) -> tuple[GPTRunConfig, GPT, Condition]:
    config = _gpt_config(size)
    config.sampling = dataclasses.replace(config.sampling, cfg_scale=GUIDANCE)
    return config, GPT(config.gpt).to(device).eval(), _embeddings(config, batch, device)


def _embeddings(config: GPTRunConfig, batch: int, device: torch.device) -> Condition:
    shape = (batch, config.gpt.condition_tokens, config.gpt.condition_width)
    return Condition.of(torch.randn(shape, device=device))


def _quietly(work):
    """`work` without gradients and without a result."""

    @torch.inference_mode()
    def call() -> None:
        work()

    return call


CASES = (
    Case("encode", "tiny", "shapes", partial(encode, "tiny"), repeats=10),
    Case("decode", "tiny", "shapes", partial(decode, "tiny"), repeats=10),
    Case("extract_64", "tiny", "shapes", partial(extract_surface, 64, "tiny"), repeats=5),
    Case("extract_128", "tiny", "shapes", partial(extract_surface, 128, "tiny")),
    Case("generate_batch_1", "tiny", "tokens", partial(generate_tokens, 1, "tiny"), repeats=2),
    Case("generate_batch_4", "tiny", "tokens", partial(generate_tokens, 4, "tiny"), repeats=2),
    Case("encode", "full", "shapes", partial(encode, "full"), repeats=1),
    Case("decode", "full", "shapes", partial(decode, "full"), repeats=2),
    Case("extract_64", "full", "shapes", partial(extract_surface, 64, "full"), repeats=2),
    Case("extract_128", "full", "shapes", partial(extract_surface, 128, "full"), repeats=1),
    Case(
        "generate_batch_1",
        "full",
        "tokens",
        partial(generate_tokens, 1, "full"),
        repeats=1,
        devices=("cuda",),
    ),
    Case(
        "generate_batch_4",
        "full",
        "tokens",
        partial(generate_tokens, 4, "full"),
        repeats=1,
        devices=("cuda",),
    ),
)
