"""The shipped weights: small, complete, made for each other, and good for what the README says they
do."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

import infer_vqvae
import run
from tar3d import checkpoint
from tar3d.config import GPTRunConfig, PointSamplingConfig
from tar3d.data.toy.shapes import generate
from tar3d.evaluation.evaluator import load_evaluator, surface
from tar3d.mesh.load import load_mesh
from tar3d.mesh.points import sample_shape, sample_surface
from tar3d.metrics.volumes import volume_iou
from tar3d.pipeline import reconstruct
from tar3d.tokenizer.loss import intersection_over_union

ROOT = Path(__file__).resolve().parent.parent
GPT = "gpt_any"
TINY = ROOT / "pretrained" / "tiny"
MB = 1_000_000


def test_sizes_stay_within_the_limits():
    sizes = {p: p.stat().st_size for p in TINY.rglob("*") if p.is_file()}
    assert max(sizes.values()) <= 16 * MB
    assert sum(sizes.values()) <= 40 * MB


@pytest.mark.parametrize("part", [checkpoint.TOKENIZER, GPT])
def test_each_model_says_how_it_was_made(part: str):
    metrics = json.loads((TINY / part / checkpoint.METRICS).read_text())
    for key in ("command", "commit", "machine", "date", "hours", "step"):
        assert metrics[key]
    assert metrics["command"] in (TINY / part / checkpoint.README).read_text()


def test_the_gpt_speaks_the_shipped_tokenizers_codes():
    tokenizer = checkpoint.load_tokenizer(TINY)
    assert checkpoint.read_config(
        TINY / GPT, GPTRunConfig
    ).tokenizer_fingerprint == checkpoint.token_fingerprint(tokenizer)


def test_the_tokenizer_keeps_a_hollow_mug_hollow():
    truth = load_mesh(ROOT / "assets" / "sample_mesh.glb")
    surface = sample_surface(truth, 8192, np.random.default_rng(0))
    rebuilt, _ = reconstruct(checkpoint.load_tokenizer(TINY), surface, resolution=64)
    # filled, this mug would have more than twice its volume and an IoU below 0.5
    assert volume_iou(rebuilt, truth) > 0.8


def test_more_points_are_never_worse():
    """IoU of three procedural shapes from 8,192 surface points, and from ten times as many.

    Over 32 shapes the two are equal to 0.001; of three, chance can make 0.003.
    """
    tokenizer, ious = checkpoint.load_tokenizer(TINY), []
    config = PointSamplingConfig(surface_points=81_920, volume_points=20_000, near_points=1)
    for index in range(3):
        samples, _ = sample_shape(generate(index, 77).mesh, config, 0)
        surface, points = (torch.from_numpy(a)[None] for a in (samples.surface, samples.points))
        inside = torch.from_numpy(samples.inside)[None]
        logits = [
            tokenizer.query(tokenizer.decode(tokenizer.tokenize(surface[:, :count])), points)
            for count in (8192, 81_920)
        ]
        ious.append([intersection_over_union(x, inside, torch.ones_like(inside)) for x in logits])
    few, many = torch.tensor(ious).mean(0).tolist()
    assert few > 0.93 and many > few - 0.008


def test_the_default_commands_make_what_they_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    assert (
        run.main(["--gpt-type", "i23d", "--save-path", str(tmp_path / "a"), "--resolution", "64"])
        == 0
    )
    assert infer_vqvae.main(["--output_dir", str(tmp_path / "b"), "--resolution", "64"]) == 0
    expected = {
        tmp_path / "a" / "sample_image.glb": (".png", ".json"),
        tmp_path / "b" / "sample_mesh.glb": (".png",),
    }
    for mesh, others in expected.items():
        loaded = trimesh.load(mesh, force="mesh")
        assert loaded.is_watertight and loaded.volume > 0
        for suffix in others:
            assert mesh.with_suffix(suffix).stat().st_size > 0


def test_the_same_seed_gives_the_same_mesh_alone_and_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes((ROOT / "assets" / "sample_image.png").read_bytes())
    small = ["--resolution", "32", "--seed", "5"]
    assert run.main(["--input", str(folder), "--save-path", str(tmp_path / "many"), *small]) == 0
    assert run.main(["--save-path", str(tmp_path / "one"), *small]) == 0
    alone = (tmp_path / "one" / "sample_image.glb").read_bytes()
    assert (
        (tmp_path / "many" / "a.glb").read_bytes()
        == alone
        == (tmp_path / "many" / "b.glb").read_bytes()
    )


def test_the_mesh_of_saved_tokens_is_the_mesh_they_were_saved_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    made, rebuilt, again = (tmp_path / name for name in ("made", "rebuilt", "again"))
    flags = ["--save-tokens", "--resolution", "32"]
    assert (
        run.main(
            [
                "--prompt",
                "a plane with four engines",
                "--save-path",
                str(made),
                "--no-preview",
                *flags,
            ]
        )
        == 0
    )
    assert (
        infer_vqvae.main(["--output_dir", str(rebuilt), "--no-pictures", *flags]) == 0
    )  # of a mesh in a frame of its own
    for folder in (made, rebuilt):
        flags = [
            "--input_file",
            str(folder / "tokens"),
            "--output_dir",
            str(again),
            "--resolution",
            "32",
        ]
        assert infer_vqvae.main(flags) == 0
        (mesh,) = folder.glob("*.glb")
        assert (again / mesh.name).read_bytes() == mesh.read_bytes()
        assert (again / mesh.with_suffix(".png").name).stat().st_size > 0
        text = (again / "report.md").read_text()
        assert "1 decoded from tokens" in text and "768 tokens use" in text


def test_words_decide_what_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    prompts = [
        "a sofa with round arms",
        "a plane with four engines",
        "a mug",
        "a tall bottle",
        "a table with four legs",
    ]
    flags = [
        "--save-path",
        str(tmp_path),
        "--resolution",
        "48",
        "--batch-size",
        "5",
        "--no-preview",
    ]
    assert run.main(["--prompt", *prompts, *flags]) == 0
    evaluator = load_evaluator(TINY / "evaluator")
    points = [
        surface(load_mesh(tmp_path / f"{prompt.replace(' ', '_')}.glb"), seed=0)
        for prompt in prompts
    ]
    predicted = evaluator.categories_of(torch.from_numpy(np.stack(points)))
    assert (
        sum(
            a == b
            for a, b in zip(predicted, ["sofa", "plane", "mug", "bottle", "table"], strict=True)
        )
        >= 4
    ), predicted
