"""run.py with a GPT of a few steps: what goes wrong is listed, the rest is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from run_files import exit_code

import run
from tar3d import checkpoint
from tar3d.config import VQVAEConfig
from tar3d.contracts import LogitsNotFinite
from tar3d.pipeline import Pipeline


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--faces", "3"], "a closed mesh has 4 or more"),
        (["--size", "-2"], "the longest side must be positive"),
    ],
)
def test_meshes_that_cannot_be_are_refused_before_they_are_made(capsys, flags, message):
    with pytest.raises(SystemExit):
        run.main(flags)
    assert message in capsys.readouterr().err


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Two pictures with one stem, and a file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, color in (("chair.png", (200, 30, 30)), ("chair.webp", (30, 200, 30))):
        array = np.full((40, 40, 3), 255, np.uint8)
        array[10:30, 12:26] = color
        Image.fromarray(array).save(folder / name, lossless=True)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_shapes_whose_logits_are_not_finite_are_listed_and_the_others_are_written(
    pictures, full_model, tmp_path, capsys, monkeypatch
):
    generate, calls = Pipeline.generate, []

    def failing_once(self, *args, **options):
        calls.append(1)
        if len(calls) == 1:
            raise LogitsNotFinite("the logits of the GPT are NaN")
        return generate(self, *args, **options)

    monkeypatch.setattr(Pipeline, "generate", failing_once)
    out, picture = tmp_path / "out", str(pictures / "chair.png")
    model = ["--model", str(full_model), "--resolution", "8", "--no-preview"]
    flags = ["--input", picture, "--save-path", str(out), "--num-samples", "2", *model]
    assert run.main(flags) == 1
    output = capsys.readouterr()
    assert "failed: chair.png: the logits of the GPT are NaN" in output.err
    assert "1 of 2 shapes" in output.out and len(list(out.glob("*.glb"))) == 1


@pytest.mark.parametrize(
    "flags",
    [["--seed", "18446744073709551616"], ["--seed", "x"], ["--temperature", "inf"]],
    ids=" ".join,
)
def test_numbers_that_cannot_be_meant_are_a_sentence(full_model, tmp_path, capsys, flags):
    out = ["--save-path", str(tmp_path / "out"), "--model", str(full_model)]
    assert exit_code(run.main, [*flags, *out]) == 2
    assert flags[0].strip("-") in capsys.readouterr().err


def test_a_bad_picture_is_listed_and_the_others_are_written(pictures, full_model, tmp_path, capsys):
    out = tmp_path / "out"
    flags = [
        "--input",
        str(pictures),
        "--save-path",
        str(out),
        "--model",
        str(full_model),
        "--seed",
        "3",
        "--top-k",
        "5",
        "--resolution",
        "8",
    ]
    assert run.main(flags) == 1
    assert sorted(p.name for p in out.iterdir()) == [
        f"chair_{s}.{e}" for s in ("png", "webp") for e in ("glb", "json", "png")
    ]
    output = capsys.readouterr()
    assert "failed: broken.png" in output.err and "2 of 3 shapes" in output.out
    record = json.loads((out / "chair_png.json").read_text())
    assert (
        record["seed"] == 3
        and record["sampling"]["top_k"] == 5
        and record["precision"] == "32-true"
    )
    assert (
        run.main([*flags, "--format", "ply", "--batch-size", "3"]) == 1
    )  # a bad picture costs its batch mates nothing
    assert len(list(out.glob("*.ply"))) == 2 and "failed: broken.png" in capsys.readouterr().err
    (pictures / "broken.png").unlink()
    assert run.main([*flags, "--num-samples", "2", "--format", "obj", "--batch-size", "3"]) == 0
    assert len(list(out.glob("*.obj"))) == 4
    assert run.main([*flags, "--format", "stl", "--faces", "40", "--size", "80"]) == 0
    said = capsys.readouterr().out
    for path in out.glob("*.stl"):
        mesh, record = trimesh.load_mesh(path), json.loads(path.with_suffix(".json").read_text())
        assert (
            mesh.extents.max() == pytest.approx(80, rel=1e-5)
            and mesh.is_watertight
            and record["size"] == 80
        )
        assert len(mesh.faces) == record["faces"] and (
            len(mesh.faces) <= 40 or "faces would close" in said
        )


def test_a_picture_gives_the_same_tokens_alone_and_among_others(
    pictures, full_model, tmp_path, monkeypatch
):
    drawn = []
    generate = Pipeline.generate

    def recorded(self, *args, **kwargs):
        results = generate(self, *args, **kwargs)
        drawn.extend(r.tokens.tolist() for r in results)
        return results

    monkeypatch.setattr(Pipeline, "generate", recorded)
    flags = [
        "--save-path",
        str(tmp_path / "out"),
        "--model",
        str(full_model),
        "--resolution",
        "8",
        "--seed",
        "1",
    ]
    run.main(["--input", str(pictures), *flags])
    run.main(["--input", str(pictures / "chair.webp"), *flags])
    run.main(["--input", str(pictures / "chair.webp"), *flags[:-1], "2"])
    among, alone, other_seed = drawn[1:]
    assert among == alone != other_seed and len(alone) == 48


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--input", "none.png"], "none.png does not exist"),
        (["--model", "none"], "no model at none"),
        (["--top-p", "2"], r"top_p must be in (0, 1], got 2.0"),
        (["--device", "cpu", "--low-vram"], "there is no GPU memory to save"),
        (["--save-path", "PICTURES"], "holds the input, which could be overwritten"),
        (["--vq-ckpt", "OTHER"], "the GPT was trained on the tokens of tokenizer"),
    ],
)
def test_refusals_of_the_generation(pictures, gpt_run, vqvae_run, tmp_path, capsys, flags, message):
    vqvae = checkpoint.load_tokenizer(vqvae_run / "model")
    with torch.no_grad():
        vqvae.quantizer.codebook.neg_()
    checkpoint.save_model(tmp_path / "other", vqvae, VQVAEConfig(tokenizer=vqvae.config), {}, "")
    names = {"PICTURES": str(pictures), "OTHER": str(tmp_path / "other")}
    common = [
        "--input",
        str(pictures),
        "--save-path",
        str(tmp_path / "out"),
        "--model",
        str(gpt_run / "model"),
    ]
    assert exit_code(run.main, [*common, *(names.get(f, f) for f in flags)]) == 2
    assert message in capsys.readouterr().err


def test_models_given_apart(gpt_run, vqvae_run):
    both = Pipeline.load(vqvae=vqvae_run / "model", gpt=gpt_run / "model" / "gpt_i23d")
    bundle = Pipeline.load(gpt_run / "model")
    assert checkpoint.fingerprint(both.model) == checkpoint.fingerprint(bundle.model)
    with pytest.raises(
        ValueError,
        match="give a model directory with tokenizer/ and gpt_<type>/, or vqvae and gpt apart",
    ):
        Pipeline.load(vqvae=vqvae_run / "model")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num-samples", "0"], "must be at least 1"),
        (["--resolution", "0"], "must be at least 1"),
        (["--resolution", "100000"], "must be at most 2,048, got 100,000"),
    ],
)
def test_counts_have_bounds(capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        run.main(flags)
    assert stop.value.code == 2 and message in capsys.readouterr().err
