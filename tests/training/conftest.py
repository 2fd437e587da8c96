"""The data that trainings in processes of their own read, what starts them, and what they make when
nothing happens to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from trainings import GPT, VQVAE, finish

from tar3d.data.formats.dataset_folder import read_splits


@pytest.fixture(scope="session")
def data(samples, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "set"
    shutil.copytree(samples, folder)
    ids = sorted(i for ids in read_splits(folder).values() for i in ids)
    (folder / "splits.json").write_text(
        json.dumps({"train": ids[:3], "val": ids[3:4], "test": ids[4:]})
    )
    return folder


@pytest.fixture(scope="session")
def empty(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "empty.yaml"
    path.write_text("")
    return path


@pytest.fixture(scope="session")
def commands(data, empty, tmp_path_factory) -> dict[str, list[str]]:
    """What starts each training, without --out; and a finished run of the tokenizer, whose tokens
    the GPT learns."""
    vqvae = ["train_vqvae.py", "--base", str(empty), "--data", str(data), *VQVAE]
    out = tmp_path_factory.mktemp("whole") / "vqvae"
    finish([*vqvae, "--out", str(out)])
    gpt = [
        "train_gpt.py",
        "--config",
        str(empty),
        "--data",
        str(data),
        "--vq-ckpt",
        str(out / "model"),
        *GPT,
    ]
    finish([*gpt, "--out", str(out.parent / "gpt")])
    return {"vqvae": vqvae, "gpt": gpt, "whole": out.parent}
