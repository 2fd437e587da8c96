"""docs/own_meshes.md, every command of it, on real meshes: in order, with small settings added."""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tar3d.data.datasets.spread import spread
from tar3d.data.formats.captions import captions_of
from tar3d.data.formats.dataset_folder import read_splits
from tar3d.mesh.load import list_meshes

ROOT = Path(__file__).resolve().parents[1]
DATASETS = Path(os.environ.get("TAR3D_DATASETS") or ROOT.parent / "shared" / "datasets")
PAGE = (ROOT / "docs" / "own_meshes.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    python ")]
SMALL = {  # what a command is given beside its own words, so that it takes seconds
    # Enough steps that fields are not empty, for an empty one is a failure.
    "train_vqvae": [
        "train.autoencoder_steps=120",
        "train.codebook_steps=30",
        "train.batch_size=4",
        "train.validate_every=150",
        "train.validation_shapes=4",
        "train.preview_shapes=2",
        "train.num_workers=0",
        "train.surface_points=1024",
        "train.volume_points=64",
        "train.near_points=512",
        "train.near_weight=5",
        "tokenizer.grid_size=8",
        "tokenizer.width=32",
        "tokenizer.decoder_layers=1",
        "tokenizer.upsample_stages=1",
        "tokenizer.codebook_size=64",
        "optim.warmup_steps=1",
    ],
    "infer_vqvae": ["--limit", "2", "--resolution", "16"],
    "train_gpt": [
        "train.steps=60",
        "train.global_batch_size=4",
        "train.code_predictor_rows=4",
        "train.validate_every=60",
        "train.validation_shapes=2",
        "train.preview_shapes=1",
        "train.num_workers=0",
        "gpt.num_layers=1",
        "gpt.width=32",
        "gpt.num_heads=2",
    ],
    "run": ["--resolution", "32"],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """20 real meshes, named and foldered as somebody's own, and a small procedural set in place of
    the large one."""
    if not (DATASETS / "dev").is_dir():
        pytest.skip("no real meshes here")
    root = tmp_path_factory.mktemp("own")
    paths = list_meshes(DATASETS / "dev" / "meshes")
    for i in spread(len(paths), 20):
        target = root / "meshes" / paths[i].parent.name / paths[i].name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(paths[i], target)
    toy = importlib.import_module("tar3d.data.toy.__main__")
    samples = importlib.import_module("tar3d.data.make_samples")
    assert toy.main(["--out", str(root / "toy"), "--num", "4", "--workers", "1"]) == 0
    counts = ["surface_points=8192", "volume_points=8192", "near_points=8192"]
    assert samples.main([str(root / "toy"), "--workers", "1", *counts]) == 0
    return {
        "MESHES": root / "meshes",
        "DATA": root / "data",
        "data/toy": root / "toy",
        "outputs": root / "outputs",
    }


def in_place(word: str, places: dict[str, Path]) -> str:
    """A word of a command with the page's folders replaced."""
    if word == "PICTURES":
        return str(next((places["DATA"] / "views").glob("*/0.png")))
    if word == "PROMPT":
        captions, splits = captions_of(places["DATA"]), read_splits(places["DATA"])
        words = " ".join(captions[i][0] for i in splits["train"]).split()
        return Counter(words).most_common(1)[0][0]  # known, as it occurs more than once
    for name, path in places.items():
        if word == name or word.startswith((f"{name}/", f"{name}:")):
            return str(path) + word[len(name) :]
    return word


def test_the_page_goes_from_meshes_to_meshes(places, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(COMMANDS) == 9
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        module = words[1] if words[0] == "-m" else words[0].removesuffix(".py")
        arguments = [in_place(word, places) for word in words[2 if words[0] == "-m" else 1 :]]
        assert importlib.import_module(module).main([*arguments, *SMALL.get(module, [])]) == 0, (
            command
        )
    assert len(list((places["DATA"] / "samples").glob("*.npz"))) == 20
    for made in (
        "own_vqvae/model/model.safetensors",
        "own_rebuilt/report.md",
        "own_gpt/model/**/model.safetensors",
        "own_generate/*.glb",
    ):
        assert list(places["outputs"].glob(made)), made
    assert (places["DATA"] / "contact_sheet.png").is_file() and (
        places["DATA"] / "inspect" / "index.md"
    ).is_file()
