"""The scripts for a trained model from any folder, and the ways in for conditions and settings."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_files import exit_code

import infer_vqvae
import run
from tar3d.config import SamplingConfig, sampling
from tar3d.mesh.load import load_mesh
from tar3d.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_run_works_from_any_folder(tmp_path):
    command = [sys.executable, str(ROOT / "run.py"), "--resolution", "24", "--device", "cpu"]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert result.returncode == 0, result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["outputs"]
    record = json.loads((tmp_path / "outputs/generate/sample_image.json").read_text())
    assert record["model"] == "pretrained/tiny" and Path(record["input"]).is_file()
    assert len(load_mesh(tmp_path / "outputs/generate/sample_image.glb").faces) > 100


def test_reconstruction_works_from_any_folder(elsewhere):
    assert infer_vqvae.main(["--resolution", "24", "--no-pictures", "--save-tokens"]) == 0
    out = elsewhere / "outputs" / "reconstruct"
    assert {p.name for p in out.iterdir()} == {
        "report.csv",
        "report.md",
        "sample_mesh.glb",
        "summary.json",
        "tokens",
    }
    flags = ["--input_file", str(out / "tokens"), "--output_dir", "again", "--resolution", "24"]
    assert infer_vqvae.main(flags) == 0
    first, again = (
        load_mesh(p) for p in (out / "sample_mesh.glb", elsewhere / "again/sample_mesh.glb")
    )
    assert np.array_equal(first.faces, again.faces)


def test_a_hub_id_is_asked_for_and_no_local_path_is(elsewhere, monkeypatch, capsys):
    import huggingface_hub

    asked = []

    def refuse(name):
        asked.append(name)
        raise OSError("no network in a test")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert run.main(["--model", "hf://owner/name"]) == 2
    assert exit_code(run.main, ["--model", "pretrained/missing"]) == 2
    assert asked == ["owner/name"] and "pretrained/missing" in capsys.readouterr().err


def test_a_new_sampling_setting_is_a_flag(elsewhere, monkeypatch, capsys):
    new = dataclasses.field(default=1.0, metadata={"help": "locally typical sampling; 1 is off"})
    wider = dataclasses.make_dataclass(
        "Wider", [("typical_p", float, new)], bases=(SamplingConfig,), kw_only=True
    )
    monkeypatch.setattr(sampling, "SamplingConfig", wider)
    saved = Pipeline.sampling
    monkeypatch.setattr(Pipeline, "sampling", lambda self, given: wider(**vars(saved(self, given))))
    flags = ["--prompt", "a chair", "--typical-p", "0.5", "--top-k", "3", "--resolution", "24"]
    assert run.main([*flags, "--no-preview"]) == 0
    record = json.loads((elsewhere / "outputs/generate/a_chair.json").read_text())["sampling"]
    assert record["typical_p"] == 0.5 and record["top_k"] == 3 and record["min_p"] == 0.0
    with pytest.raises(SystemExit):
        run.main(["--help"])
    assert "--typical-p" in capsys.readouterr().out


def test_an_image_and_a_file_of_it_give_the_same_shape(elsewhere):
    """By the script, and by Python."""
    image = Image.open(ROOT / "assets" / "sample_image.png")
    pipeline = Pipeline.load("pretrained/tiny")
    (shape,) = pipeline.generate(pipeline.prepare([image]).inputs, seeds=[4], resolution=24)
    assert run.main(["--seed", "4", "--resolution", "24", "--save-tokens"]) == 0
    path = elsewhere / "outputs/generate/tokens/sample_image.tokens.npz"
    assert (pipeline.token_files.load(path).tokens.ids[0] == shape.tokens).all()


def test_an_output_folder_that_cannot_be_made_is_one_sentence(capsys, tmp_path):
    (tmp_path / "taken").write_text("a file")
    assert run.main(["--save-path", str(tmp_path / "taken")]) == 2
    assert "cannot be written (there is a file of that name)" in capsys.readouterr().err


def test_pictures_that_are_passed_over_or_cannot_be_used_are_named(tmp_path, capsys):
    names = ["a.png", "A.jpg", "b.HEIC", "c.tga", os.fsdecode(b"\xfc.png"), "ü" * 120 + ".png"]
    folder = tmp_path / "given"
    (folder / "more").mkdir(parents=True)
    try:
        for name in names:
            (folder / name).touch()
    except OSError:
        pytest.skip("a file system whose names are in UTF-8")
    (folder / "gone.png").symlink_to("nowhere.png")
    args = run.parse_arguments(["--input", str(folder), "--save-path", str(tmp_path / "out")])
    jobs = {job.name: job for job in run.list_jobs(args)}
    assert {name for name, job in jobs.items() if not job.problem} == {"a.png", "A.jpg"}
    assert len({job.target.name.lower() for job in jobs.values()}) == len(jobs) == 5
    assert "not in UTF-8" in jobs["\\xfc.png"].problem and "link to" in jobs["gone.png"].problem
    printed = capsys.readouterr().err
    assert "1 .heic (b.HEIC), 1 .tga (c.tga)" in printed and "sub-folders" in printed
