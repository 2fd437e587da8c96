"""The first suite: what each stage costs, from surface points to a mesh, and one training step of either model.

    encode       surface points -> tokens                 decode      tokens -> planes
    extract_64   planes -> mesh on 64^3 cells             extract_128 the same on 128^3
    generate     one picture -> tokens, guidance on       train_*     forward, backward, clipping, optimizers

"tiny" are the shipped configs, "full" those of the paper (R 32, 3,072 tokens, GPT-B). Weights are random and inputs have
the right sizes; the surface that is extracted is a ball's. Training steps use the precision that training picks for the
device, the others float32, as the scripts do. Where a full case is reduced, it says how. Decoding late in a long sequence is
in the suite decode. Frozen image encoders are not
run: the full GPT's conditions are random embeddings.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.measure import Case, Work
from tar3d import config as configuration
from tar3d.config import GPTRunConfig, OptimConfig, VQVAEConfig
from tar3d.contracts import Condition, Tokens
from tar3d.gpt.engine import Engine
from tar3d.gpt.generate import generate
from tar3d.gpt.model import GPT
from tar3d.mesh.extract import drop_small_components, extract
from tar3d.optim.groups import build_optimizers
from tar3d.pipeline import I23D, MIN_COMPONENT_SHARE, QUERIES_AT_ONCE, coarse_cells
from tar3d.runtime import resolve_precision
from tar3d.tokenizer.field import OccupancyField
from tar3d.tokenizer.loss import tokenizer_loss
from tar3d.tokenizer.vqvae import VQVAE

CONFIGS = {"tiny": ("configs/vqvae3d_tiny.yaml", "configs/gpt_i23d_tiny.yaml", "GPT-tiny"),
           "full": ("configs/vqvae3d.yaml", "configs/gpt_i23d.yaml", "GPT-B")}
INFERENCE_POINTS = {"tiny": 8192, "full": 81_920}
FULL_BATCH = {"cpu": 1, "cuda": 8}  # of a full training step
CPU_SURFACE_POINTS = 16_384  # of a full training step on a CPU, where 81,920 take two minutes
GUIDANCE = 3.0  # on in every generation that is timed, whatever a config samples with: it doubles the rows


def encode(size: str, device: torch.device) -> Work:
    vqvae, points = _vqvae(size, device).eval(), INFERENCE_POINTS[size]
    surface = _surface(1, points, device)
    return Work(_quietly(lambda: vqvae.tokenize(surface)), 1, "float32", {"batch": 1, "surface_points": points})


def decode(size: str, device: torch.device) -> Work:
    vqvae = _vqvae(size, device).eval()
    ids = torch.randint(vqvae.config.codebook_size, (1, vqvae.config.num_tokens), device=device)
    return Work(_quietly(lambda: vqvae.decode(Tokens(ids))), 1, "float32", {"batch": 1, "tokens": ids.shape[1]})


def extract_surface(resolution: int, size: str, device: torch.device) -> Work:
    """As the pipeline does it, with the removal of floaters. The surface is a ball's at the cost of the head: random weights
    alone give a field without one, or only specks."""
    vqvae = _vqvae(size, device).eval()
    side = vqvae.config.grid_size * 2**vqvae.config.upsample_stages
    field = OccupancyField(vqvae.occupancy, torch.randn(3, vqvae.config.plane_channels, side, side, device=device))

    @torch.inference_mode()
    def call() -> dict[str, float | int]:
        mesh = extract(lambda points: 0.7 - points.norm(dim=1) + 1e-6 * field(points), resolution,
                       chunk=QUERIES_AT_ONCE[device.type], coarse=coarse_cells(side), device=device)
        return {"faces": len(drop_small_components(mesh, MIN_COMPONENT_SHARE).faces)}

    return Work(call, 1, "float32", {"batch": 1, "resolution": resolution, "plane_side": side})


def generate_tokens(batch: int, size: str, device: torch.device) -> Work:
    config, gpt, condition = _gpt_and_condition(size, batch, device)
    codes = F.normalize(torch.randn(gpt.config.codebook_size, config.gpt.sketch_dim or 1, device=device), dim=-1)
    engine = Engine(gpt)  # made once, as a pipeline does
    call = _quietly(lambda: generate(gpt, condition, config.sampling, list(range(batch)), codes=codes, engine=engine))
    settings = _gpt_settings(config, batch)
    return Work(call, batch * gpt.config.num_tokens, "float32", settings | {"cfg_scale": config.sampling.cfg_scale})


def train_tokenizer(size: str, device: torch.device) -> Work:
    """A step of the second stage (with the codebook), as train_vqvae.py does it."""
    config = _vqvae_config(size)
    t = config.train
    batch, count = t.batch_size if size == "tiny" else FULL_BATCH[device.type], t.surface_points
    reduced = "" if batch == t.batch_size else f"batch {batch} instead of {t.batch_size}"
    if size == "full" and device.type == "cpu":
        count = CPU_SURFACE_POINTS
        reduced += f", {count} surface points instead of {t.surface_points}"
    model = _vqvae(size, device).train()
    optimizers, precision = _optimizers(model, config.optim), resolve_precision(t.precision, device.type)
    surface, queries = _surface(batch, count, device), t.volume_points + t.near_points
    points = torch.rand(batch, queries, 3, device=device) * 2 - 1
    inside, is_near = points.norm(dim=-1) < 0.7, (torch.arange(queries, device=device) >= t.volume_points).expand(batch, -1)
    generator = torch.Generator().manual_seed(0)

    def call() -> None:
        with _autocast(device, precision):
            output = model(surface, points, True)
        loss = tokenizer_loss(output.logits, inside, is_near, output.commitment,
                              near_weight=t.near_weight, commitment_weight=t.commitment_weight)
        _step(model, optimizers, loss.total, config.optim)
        model.quantizer.step(generator)

    settings = {"batch": batch, "surface_points": count, "query_points": queries, "million_parameters": _millions(model)}
    return Work(call, batch, precision, settings, reduced)


def train_gpt(size: str, device: torch.device) -> Work:
    """A step as train_gpt.py does it; the full one starts from stored embeddings, as with a frozen image encoder."""
    config = _gpt_config(size)
    whole = config.train.global_batch_size
    batch = whole if size == "tiny" else FULL_BATCH[device.type]
    if size == "tiny":
        model: torch.nn.Module = I23D(config)
        source = torch.randint(256, (batch, *[config.image_encoder.image_size] * 2, 3), dtype=torch.uint8, device=device)
    else:
        model = GPT(config.gpt)
        source = _embeddings(config, batch, device)
    model = model.to(device).train()
    optimizers, precision = _optimizers(model, config.optim), resolve_precision(config.train.precision, device.type)
    tokens = torch.randint(config.gpt.codebook_size, (batch, config.gpt.num_tokens), device=device)
    dropped = torch.arange(batch, device=device) % 10 == 9  # about a tenth of the rows, as condition_dropout has it
    further = config.train.sketch_rows if size == "tiny" else 0
    pixels = torch.randint(256, (further, *source.shape[1:]), dtype=torch.uint8, device=device) if further else None

    def call() -> None:
        with _autocast(device, precision):
            logits = model(tokens[:, :-1], source, dropped)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
        if further:  # rows that only the image encoder and its sketch see; any smooth loss costs the same
            condition = model.condition(pixels)
            loss = loss + model.gpt.sketch(condition.embeddings, condition.mask).float().square().mean()
        _step(model, optimizers, loss, config.optim)

    settings = _gpt_settings(config, batch) | {"million_parameters": _millions(model), "sketch_rows": further}
    return Work(call, batch, precision, settings, "" if batch == whole else f"batch {batch} instead of {whole}")


def _vqvae_config(size: str) -> VQVAEConfig:
    return configuration.load(VQVAEConfig, CONFIGS[size][0])


def _gpt_config(size: str) -> GPTRunConfig:
    _, path, name = CONFIGS[size]
    return configuration.load_gpt_run(path, name, _vqvae_config(size).tokenizer)


def _gpt_settings(config: GPTRunConfig, batch: int) -> dict[str, object]:
    return {"batch": batch, "tokens": config.gpt.num_tokens, "prefix": config.gpt.condition_tokens}


def _vqvae(size: str, device: torch.device) -> VQVAE:
    return VQVAE(_vqvae_config(size).tokenizer).to(device)


def _gpt_and_condition(size: str, batch: int, device: torch.device) -> tuple[GPTRunConfig, GPT, Condition]:
    config = _gpt_config(size)
    config.sampling = dataclasses.replace(config.sampling, cfg_scale=GUIDANCE)
    return config, GPT(config.gpt).to(device).eval(), _embeddings(config, batch, device)


def _embeddings(config: GPTRunConfig, batch: int, device: torch.device) -> Condition:
    shape = (batch, config.gpt.condition_tokens, config.gpt.condition_width)
    return Condition(torch.randn(shape, device=device), torch.ones(shape[:2], dtype=torch.bool, device=device))


def _surface(batch: int, points: int, device: torch.device) -> torch.Tensor:
    """(batch, points, 6): a sphere, whose points are its normals."""
    normals = F.normalize(torch.randn(batch, points, 3, device=device), dim=-1)
    return torch.cat([0.7 * normals, normals], dim=-1)


def _optimizers(model: torch.nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    return [o for o in build_optimizers(model, config) if o is not None]


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")


def _step(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], loss: torch.Tensor, config: OptimConfig) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or float("inf"))
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def _millions(model: torch.nn.Module) -> float:
    return round(sum(p.numel() for p in model.parameters()) / 1e6, 2)


def _quietly(work):
    """Without gradients, and without what it returns."""

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
    Case("train_tokenizer", "tiny", "shapes", partial(train_tokenizer, "tiny")),
    Case("train_gpt", "tiny", "shapes", partial(train_gpt, "tiny")),
    Case("encode", "full", "shapes", partial(encode, "full"), repeats=1),
    Case("decode", "full", "shapes", partial(decode, "full"), repeats=2),
    Case("extract_64", "full", "shapes", partial(extract_surface, 64, "full"), repeats=2),
    Case("extract_128", "full", "shapes", partial(extract_surface, 128, "full"), repeats=1),
    Case("generate_batch_1", "full", "tokens", partial(generate_tokens, 1, "full"), repeats=1, devices=("cuda",)),
    Case("generate_batch_4", "full", "tokens", partial(generate_tokens, 4, "full"), repeats=1, devices=("cuda",)),
    Case("train_tokenizer", "full", "shapes", partial(train_tokenizer, "full"), repeats=1),
    Case("train_gpt", "full", "shapes", partial(train_gpt, "full"), repeats=1),
)
