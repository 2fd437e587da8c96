"""The first losses of both tiny recipes, stored: a change of the code that changes a number is
seen.

A change that is meant to: python tests/training/test_curves.py writes them anew.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
STORED = Path(__file__).with_name("curves.json")
SHAPES = 40
COMMON = [
    "train.precision=32-true",
    "train.num_workers=0",
    "train.log_every=1",
    "train.validate_every=1000",
    "train.save_every=1000",
    "train.validation_shapes=1",
    "train.preview_shapes=0",
]
VQVAE = [
    "train.autoencoder_steps=10",
    "train.codebook_steps=10",
    "train.batch_size=4",
    "optim.warmup_steps=5",
    *COMMON,
]
# At an eighth of the recipe's rates: at the full ones the code predictor's loss jumps, and rounding
# decides by how much.
GPT = [
    "train.steps=20",
    "train.global_batch_size=4",
    "train.code_predictor_rows=8",
    "optim.warmup_steps=5",
    "optim.muon_lr=5e-4",
    "optim.adamw_lr=3.75e-4",
    *COMMON,
]


def curves(folder: Path) -> dict[str, list[float]]:
    """Losses of 20 steps of each training, on a procedural set that is made for it."""
    import train_gpt
    import train_vqvae
    from tar3d.config import PointSamplingConfig, ViewConfig
    from tar3d.data.prepare.make_samples import make_samples
    from tar3d.data.toy.make_toy import make_toy_data
    from tar3d.optim import muon

    data = make_toy_data(folder / "toy", SHAPES, 0, ViewConfig(count=1, size=64), workers=1)
    make_samples(
        data,
        data,
        PointSamplingConfig(surface_points=4096, volume_points=1024, near_points=1024),
        views=ViewConfig(count=0),
    )
    # whatever the CPU has
    with mock.patch.object(muon, "_product_dtype", return_value=torch.float32):
        assert train_vqvae.main(["--data", str(data), "--out", str(folder / "vqvae"), *VQVAE]) == 0
        # The shipped tokenizer, so that a change of one training is not seen in the other.
        assert train_gpt.main(["--data", str(data), "--out", str(folder / "gpt"), *GPT]) == 0
    return {
        "vqvae": column(folder / "vqvae", "loss"),
        "gpt": column(folder / "gpt", "nll"),
        "code_distance": column(folder / "gpt", "code_distance"),
    }


def column(run: Path, name: str) -> list[float]:
    lines = [line.split(",") for line in (run / "train.csv").read_text().splitlines()]
    return [float(line[lines[0].index(name)]) for line in lines[1:]]


def test_the_first_losses_are_those_that_were_stored(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    stored, found = json.loads(STORED.read_text()), curves(tmp_path)
    for name, losses in stored.items():
        assert len(losses) == 20
        # CPUs and numbers of threads round differently: one and two threads differ by 0.2 %.
        assert found[name] == pytest.approx(losses, rel=1e-2), name


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as name:
        STORED.write_text(json.dumps(curves(Path(name)), indent=1) + "\n")
