"""The weights that a tokenizer training starts from (`--init`), and the start of its codebook.

| train.stage | trains                                      | needs --init                     |
|-------------|---------------------------------------------|----------------------------------|
| `both`      | an autoencoder, then it with its codebook   | no                               |
| `ae`        | an autoencoder                              | no                               |
| `vq`        | all, with the codebook                      | a model; its codebook is kept    |
| `decoder`   | the decoder: tokens stay what they are      | a model with a codebook          |
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

import torch

from tar3d import checkpoint
from tar3d.config import VQVAEConfig
from tar3d.data.datasets.spread import spread
from tar3d.runtime import progress_bar
from tar3d.tokenizer.quantizer import replace_codes
from tar3d.training.state import load_state
from tar3d.upgrade import upgrade_state_config

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_fabric import Fabric
    from torch import Tensor

    from tar3d.config import TokenizerConfig, VQVAETrainConfig
    from tar3d.data.datasets.shapes import MixedShapes
    from tar3d.tokenizer.vqvae import VQVAE

KMEANS_SHAPES = 512  # shapes whose latents start the codebook


def tokenizer_config(config: VQVAEConfig, init: str | None, state: Path | None) -> TokenizerConfig:
    """The tokenizer's part of the config, its `density_points` filled in there where they are 0.

    With that of the `state` to be resumed, else of `init`, else with `train.surface_points`.
    """
    before, tokenizer = None, config.tokenizer
    if state is not None and (identity := load_state(state, lazily=True).get("identity")):
        before = upgrade_state_config(identity["config"])["tokenizer"]["density_points"]
    elif init is not None:
        before = checkpoint.read_config(init, VQVAEConfig).tokenizer.density_points
    tokenizer.density_points = tokenizer.density_points or before or config.train.surface_points
    return tokenizer


def init_from(vqvae: VQVAE, init: str | None, stage: str) -> bool:
    """Fills the model from `init`, if there is one; freezes what the stage does not train.

    Returns whether the codebook is to be kept: in the stages "vq" and "decoder", of a model that
    has one. Raises ValueError where `init` lacks what the stage needs.
    """
    if stage == "decoder":
        vqvae.encoder.requires_grad_(False)
        vqvae.to_code.requires_grad_(False)
    if init is None:
        if stage in ("vq", "decoder"):
            raise ValueError(
                f"train.stage={stage} goes on from a given model: give it with --init, or train "
                "one with train.stage=both"
            )
        return False
    before = checkpoint.read_config(init, VQVAEConfig)
    has_codebook = before.train.stage != "ae"
    checkpoint.load_weights(vqvae, init)
    if stage == "decoder" and not has_codebook:
        raise ValueError(
            f"train.stage=decoder needs a model with a codebook, but {init} is an autoencoder "
            "alone: give it one with train.stage=vq"
        )
    if stage == "decoder":
        for name in (field.name for field in dataclasses.fields(vqvae.config)):
            mine, kept = getattr(vqvae.config, name), getattr(before.tokenizer, name)
            if mine != kept:
                raise ValueError(
                    f"tokenizer.{name} is {mine}, but {kept} in {init}, whose tokens "
                    f"train.stage=decoder leaves as they are: write tokenizer.{name}={kept}"
                )
    return stage in ("vq", "decoder") and has_codebook


def replacement(t: VQVAETrainConfig, generator: torch.Generator) -> partial[Tensor] | None:
    """What replaces codes for the decoder (`train.replaced_rows`), None where nothing does."""
    if not t.replaced_rows:
        return None
    return partial(
        replace_codes,
        rows=t.replaced_rows,
        codes=t.replaced_codes,
        count=t.replaced_by,
        generator=generator,
    )


@torch.no_grad()
def start_codebook(
    model: VQVAE, dataset: MixedShapes, fabric: Fabric, generator: torch.Generator
) -> None:
    """Sets the codebook by k-means over the autoencoder's latents.

    Every process computes the same codebook from the same shapes. If these are too few for a latent
    for each code (--overfit), they are drawn several times, with other points of their surfaces.
    """
    chosen, config = spread(len(dataset), KMEANS_SHAPES), model.config
    times = -(-config.codebook_size // (len(chosen) * config.num_tokens))
    draws = [(index + k * len(dataset), index) for k in range(times) for index in chosen]
    disable = not fabric.is_global_zero
    latents = []
    for draw in progress_bar(
        draws, desc="k-means start of the codebook", disable=disable, leave=False
    ):
        surface = dataset[draw]["surface"][None].to(fabric.device)
        with fabric.autocast():
            latents.append(model.encode(surface).flatten(0, -2))
    model.quantizer.init_from_latents(torch.cat(latents), generator)
