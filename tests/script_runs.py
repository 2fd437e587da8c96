"""Small trainings that the tests of the scripts share, in the process of the tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

import train_gpt
from tar3d import checkpoint
from tar3d import config as configuration
from tar3d.condition.conditioner import build_encoder
from tar3d.conditional_gpt import ConditionalGPT
from tar3d.config import GPTRunConfig
from tar3d.training.gpt_data import Inputs, make_tokens, new_encoders
from tar3d.training.gpt_init import check_tokenizer
from tar3d.training.gpt_objective import GPTObjective
from tar3d.training.run import Run
from tar3d.training.state import newest_state

TRAIN = [
    "train.precision=32-true",
    "train.num_workers=0",
    "train.save_every=2",
    "train.log_every=1",
    "train.validation_shapes=2",
    "train.preview_shapes=1",
    "train.validate_every=2",
    "optim.warmup_steps=1",
]
VQVAE = [
    "tokenizer.grid_size=4",
    "tokenizer.width=16",
    "tokenizer.num_heads=2",
    "tokenizer.num_frequencies=3",
    "tokenizer.encoder=plane_pool",
    "tokenizer.encoder_layers=1",
    "tokenizer.point_width=8",
    "tokenizer.codebook_size=16",
    "tokenizer.code_dim=4",
    "tokenizer.decoder_layers=1",
    "tokenizer.plane_channels=4",
    "tokenizer.upsample_stages=1",
    "tokenizer.occupancy_width=8",
    "tokenizer.occupancy_layers=2",
    "optim.muon_lr=0.01",
    "optim.adamw_lr=0.01",
    "train.batch_size=2",
    "train.autoencoder_steps=3",
    "train.codebook_steps=3",
    "train.surface_points=128",
    "train.volume_points=64",
    "train.near_points=32",
    *TRAIN,
]
GPT = [
    "gpt.num_layers=2",
    "gpt.width=16",
    "gpt.num_heads=2",
    "gpt.grid_size=4",
    "gpt.codebook_size=16",
    "gpt.condition_tokens=16",
    "gpt.condition_width=16",
    "gpt.layer_pattern=LF",
    "gpt.condition_dropout=0.3",
    "image_encoder.model=trained",
    "image_encoder.image_size=32",
    "image_encoder.patch_size=8",
    "image_encoder.width=16",
    "image_encoder.num_layers=1",
    "image_encoder.num_heads=2",
    "optim.muon_lr=0.01",
    "optim.adamw_lr=0.01",
    "train.steps=6",
    "train.global_batch_size=4",
    "train.micro_batch_size=2",
    *TRAIN,
]
CODE_PREDICTOR = [
    "gpt.code_predictor_dim=4",
    "gpt.code_predictor_local=2",
    "train.code_predictor_weight=1",
    "train.code_predictor_rows=8",
]


def train_gpt_in(
    out: Path,
    data: Path,
    fabric,
    tokenizer: Path,
    overrides=(),
    *,
    state: Path | None = None,
    **init,
) -> dict:
    """Trains the GPT above; `init` are the models to start from, as of `Inputs`."""
    config = configuration.load(GPTRunConfig, None, [*GPT, *overrides])
    vqvae = checkpoint.load_tokenizer(tokenizer)
    check_tokenizer(config, vqvae)
    encoders = new_encoders(config, data)
    make_tokens(config, data, vqvae, encoders, fabric)
    inputs = Inputs(data, vqvae, str(tokenizer), encoders, **init)
    return train_gpt.train(config, out, fabric, inputs, state=state)


def newest(run: Path) -> Path:
    return newest_state(run / "states")[0]


class Interrupted(Exception):
    pass


@contextlib.contextmanager
def interrupted(step: int) -> Iterator[None]:
    """Within it a training stops as its step `step` begins, after it has saved the step before."""
    micro_batches = Run.micro_batches

    def stopping(self, rows):
        if self.step == step:
            raise Interrupted
        return micro_batches(self, rows)

    with mock.patch.object(Run, "micro_batches", stopping), pytest.raises(Interrupted):
        yield


def base(tmp_path: Path) -> str:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    return str(path)


def code_predictor_objective(vqvae, *overrides: str) -> tuple[GPTRunConfig, GPTObjective]:
    config = configuration.load(
        GPTRunConfig, None, [*GPT, f"gpt.code_predictor_dim={vqvae.config.code_dim}", *overrides]
    )
    check_tokenizer(config, vqvae)
    torch.manual_seed(0)
    encoders = {kind: build_encoder(config, kind) for kind in config.conditions}
    codes = vqvae.quantizer.codebook.clone()
    return config, GPTObjective(ConditionalGPT(config, encoders), codes, config.train)


def random_rows(config: GPTRunConfig, count: int) -> dict:
    size = config.image_encoder.image_size
    return {
        "tokens": torch.randint(config.gpt.codebook_size, (count, config.gpt.num_tokens)),
        "condition": {"image": torch.randint(256, (count, size, size, 3), dtype=torch.uint8)},
    }
