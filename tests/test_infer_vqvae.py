"""infer_vqvae.py on primitive shapes: what goes wrong is listed, and the rest is written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from run_files import exit_code, rows

import infer_vqvae
from tar3d import checkpoint
from tar3d.config import EvalProtocol
from tar3d.contracts import Mesh
from tar3d.data.formats.token_file import TokenFiles
from tar3d.evaluation.reconstruction import score_mesh
from tar3d.mesh.export import save_mesh
from tar3d.mesh.load import load_mesh
from tar3d.mesh.point_cloud import load_points
from tar3d.mesh.point_normals import estimate_normals
from tar3d.mesh.points import outer_surface, sample_surface
from tar3d.metrics.volumes import volume_iou
from tar3d.pipeline import reconstruct

DEV_MESHES = (
    Path(os.environ.get("TAR3D_DATASETS") or Path(__file__).parents[2] / "shared" / "datasets")
    / "dev"
    / "meshes"
)


def test_a_broken_mesh_is_listed_and_the_rest_is_written(meshes, full_vqvae, tmp_path, capsys):
    shutil.rmtree(meshes / "more" / "deep")
    (meshes / "more" / "pill.stl").unlink()
    (meshes / "broken.glb").write_bytes(b"glTF but no more")
    out = tmp_path / "out"
    flags = [
        "--input_file",
        str(meshes),
        "--output_dir",
        str(out),
        "--model",
        str(full_vqvae),
        "--resolution",
        "8",
        "--limit",
        "3",
        "--pc_size",
        "200",
        "--device",
        "cpu",
    ]  # three, evenly spread: ball, box, more__tube
    (meshes / "ball.glb").write_bytes(b"glTF but no more")
    assert infer_vqvae.main(flags) == 1
    found = {r["id"]: r for r in rows(out / "report.csv")}
    assert {i: r["status"] for i, r in found.items()} == {
        "ball": "failed",
        "box": "ok",
        "more__tube": "ok",
    }
    assert "ball.glb" in found["ball"]["reason"] and found["box"]["tokens"] == "48"
    assert sorted(p.name for p in out.glob("*.[gp]*")) == [
        "box.glb",
        "box.png",
        "more__tube.glb",
        "more__tube.png",
    ]
    assert json.loads((out / "summary.json").read_text())["of"] == 3
    output = capsys.readouterr()
    assert "2 of 3 meshes reconstructed" in output.out and "failed: ball" in output.err


@pytest.mark.parametrize(
    "frame, half", [("normalized", 1.0), ("source", 0.5 / 0.95)]
)  # the box's longest side is 1
def test_a_reconstruction_is_scored_and_written_in_the_frame_asked_for(
    meshes, full_vqvae, tmp_path, frame, half
):
    out = tmp_path / "out"
    flags = [
        "--input_file",
        str(meshes / "box.obj"),
        "--output_dir",
        str(out),
        "--model",
        str(full_vqvae),
        "--resolution",
        "8",
        "--format",
        "obj",
        "--frame",
        frame,
        "--no-pictures",
    ]
    assert infer_vqvae.main(flags) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "box.obj",
        "report.csv",
        "report.md",
        "summary.json",
    ]
    vertices = np.array(
        [
            line.split()[1:]
            for line in (out / "box.obj").read_text().splitlines()
            if line.startswith("v ")
        ],
        dtype=float,
    )
    assert np.abs(vertices).max() == pytest.approx(half, rel=1e-3)
    (row,) = rows(out / "report.csv")
    assert float(row["iou"]) == pytest.approx(
        0.95**3 * 0.6 * 0.4, abs=0.01
    )  # of the box in the cube
    assert 0 < float(row["floor_chamfer"]) < float(row["chamfer"])


def test_the_scores_are_those_of_the_file_written_also_far_from_the_origin(
    meshes, full_vqvae, tmp_path
):
    box = load_mesh(meshes / "box.obj")
    to_source = box.to_source.copy()
    to_source[:3, 3] += [5.4e5, 5.4e6, 120]
    save_mesh(Mesh(box.vertices, box.faces, to_source), tmp_path / "far.obj", frame="source")
    found = {}
    for path in (meshes / "box.obj", tmp_path / "far.obj"):
        out = tmp_path / path.stem
        flags = ["--input_file", str(path), "--output_dir", str(out), "--resolution", "8"]
        assert infer_vqvae.main([*flags, "--model", str(full_vqvae), "--no-pictures"]) == 0
        (row,) = rows(out / "report.csv")
        written = load_mesh(out / f"{path.stem}.glb")
        scores = score_mesh(written, load_mesh(path), EvalProtocol())
        for name in ("chamfer", "fscore@0.02", "iou"):
            assert float(row[name]) == pytest.approx(scores[name], abs=1e-6)
        found[path.stem] = [float(row[name]) for name in ("chamfer", "iou")]
    assert found["far"] == pytest.approx(found["box"], rel=1e-3)


def test_categories_of_the_manifest_reach_the_report(meshes, full_vqvae, tmp_path):
    (meshes / "manifest.csv").write_text("id,category\nbox,furniture\nmore__tube,pipes\n")
    out = tmp_path / "out"
    flags = [
        "--input_file",
        str(meshes),
        "--output_dir",
        str(out),
        "--model",
        str(full_vqvae),
        "--resolution",
        "8",
        "--limit",
        "2",
        "--no-pictures",
    ]
    assert infer_vqvae.main(flags) == 0
    assert {r["id"]: r["category"] for r in rows(out / "report.csv")} == {
        "ball": "",
        "more__tube": "pipes",
    }
    assert "| pipes | 1 |" in (out / "report.md").read_text()


def cloud_of(path: Path, count: int = 1500) -> tuple[np.ndarray, np.ndarray, Mesh]:
    """(N, 3) points in the frame of a mesh file, their normals, and the mesh."""
    mesh = load_mesh(path)
    surface = sample_surface(mesh, count, np.random.default_rng(0)).astype(np.float64)
    return surface[:, :3] @ mesh.to_source[:3, :3].T + mesh.to_source[:3, 3], surface[:, 3:], mesh


def test_meshes_and_clouds_of_one_folder_are_reconstructed_and_bad_ones_are_listed(
    meshes, full_vqvae, tmp_path, capsys
):
    points, normals, _ = cloud_of(meshes / "box.obj")
    np.savetxt(meshes / "box.xyz", points)  # beside box.obj
    np.savez(meshes / "more" / "true.npz", points=points, normals=normals)
    np.savez(meshes / "more" / "turned.npz", points=points, normals=-normals)
    np.save(meshes / "more" / "stray.npy", np.concatenate([points, [[1000, 0, 0]]]))
    np.savez(meshes / "truncated.npz", points=points)
    (meshes / "truncated.npz").write_bytes((meshes / "truncated.npz").read_bytes()[:500])
    (meshes / "README.txt").write_text("no points")
    (meshes / "words.xyz").write_text("1 2 3\nthree\n")
    for name in ("ball.glb", "ball.obj", "more/deep/ring.off", "more/pill.stl"):
        (meshes / name).unlink()
    out = tmp_path / "out"
    flags = [
        "--input_file",
        str(meshes),
        "--output_dir",
        str(out),
        "--model",
        str(full_vqvae),
        "--resolution",
        "8",
    ]
    assert infer_vqvae.main(flags) == 1
    found = {r["id"]: r for r in rows(out / "report.csv")}
    assert {i: (r["kind"], r["status"]) for i, r in found.items()} == {
        "box": ("mesh", "ok"),
        "box.xyz": ("points", "ok"),
        "more__stray": ("points", "ok"),
        "more__true": ("points", "ok"),
        "more__tube": ("mesh", "ok"),
        "more__turned": ("points", "ok"),
        "truncated": ("points", "failed"),
        "words": ("points", "failed"),
    }
    assert (
        found["box.xyz"]["note"] == "normals estimated and oriented"
        and found["more__true"]["note"] == ""
    )
    assert (
        "turned" in found["more__turned"]["note"]
        and "line 2 holds 'three'" in found["words"]["reason"]
    )
    given, cloud = found["box"], found["more__true"]
    assert cloud["iou"] == cloud["floor_chamfer"] == cloud["floor_fscore@0.02"] == ""
    assert float(cloud["chamfer"]) == pytest.approx(
        float(given["chamfer"]), rel=0.1
    )  # of the cube from the box, either way
    assert {p.name for p in out.glob("*.[gp]*")} == {
        f"{i}.{s}" for i, r in found.items() if r["status"] == "ok" for s in ("glb", "png")
    }
    text = (out / "report.md").read_text()
    assert (
        "| all meshes | 2 |" in text and "| point clouds | 4 |" in text and "6 of 8 inputs" in text
    )
    assert "stray points" in found["more__stray"]["note"]
    assert "2 of 4: normals estimated and oriented" in text
    means = json.loads((out / "summary.json").read_text())["means"]
    assert means["point clouds"]["iou"] is None and means["all meshes"]["iou"] > 0
    assert "note: box.xyz: normals estimated and oriented" in capsys.readouterr().err


def test_tokens_are_decoded_and_those_of_another_tokenizer_are_listed(
    meshes, vqvae_run, full_vqvae, tmp_path, capsys
):
    vqvae, other = (
        checkpoint.load_tokenizer(full_vqvae),
        checkpoint.load_tokenizer(vqvae_run / "model"),
    )
    with torch.no_grad():
        other.to_code.weight.add_(1.0)
    given = tmp_path / "given"
    shutil.copytree(meshes, given / "meshes")
    to_source = np.diag([3.0, 3.0, 3.0, 1.0])
    ids = torch.arange(48) % 16
    for name, owner in (("box", vqvae), ("alien", other)):
        TokenFiles(owner).save(given / "meshes", name, ids, to_source=to_source, sampled=False)
    (given / "meshes" / "tokens" / "box.tokens.npz").rename(
        given / "meshes" / "box.tokens.npz"
    )  # beside box.obj
    out = tmp_path / "out"
    flags = [
        "--input_file",
        str(given),
        "--output_dir",
        str(out),
        "--model",
        str(full_vqvae),
        "--resolution",
        "8",
        "--format",
        "obj",
        "--save-tokens",
    ]
    assert infer_vqvae.main(flags) == 1
    found = {r["id"]: r for r in rows(out / "report.csv")}
    assert (
        found["box"]["kind"],
        found["box.tokens.npz"]["kind"],
        found["tokens__alien"]["kind"],
    ) == ("mesh", "tokens", "tokens")
    assert found["box.tokens.npz"]["status"] == "ok" and found["box.tokens.npz"]["chamfer"] == ""
    assert "has tokens of tokenizer" in found["tokens__alien"]["reason"]
    assert "failed: tokens__alien" in capsys.readouterr().err
    vertices = np.array(
        [
            line.split()[1:]
            for line in (out / "box.tokens.npz.obj").read_text().splitlines()
            if line.startswith("v ")
        ],
        dtype=float,
    )
    assert np.abs(vertices).max() == pytest.approx(
        3, rel=1e-3
    )  # the cube, in the frame that the file tells
    saved = {p.name for p in (out / "tokens").iterdir()}
    assert saved == {
        f"{i}.tokens.npz" for i, r in found.items() if r["kind"] != "tokens" and r["status"] == "ok"
    }
    stored, mesh = (
        TokenFiles(vqvae).load(out / "tokens" / "box.tokens.npz"),
        load_mesh(meshes / "box.obj"),
    )
    assert np.array_equal(stored.to_source, mesh.to_source)
    surface = torch.from_numpy(outer_surface(mesh, 8192, np.random.default_rng(0)))
    assert torch.equal(stored.tokens.ids, vqvae.tokenize(surface[None]).ids)
    used = torch.cat(
        [ids, *(TokenFiles(vqvae).load(p).tokens.ids[0] for p in (out / "tokens").iterdir())]
    )
    shares = torch.tensor([(used == code).double().mean() for code in used.unique()])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["codebook_usage"] == len(shares) / 16
    assert summary["perplexity"] == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())))


def test_the_reconstruction_of_a_cloud_stands_where_the_cloud_is(meshes, full_vqvae, tmp_path):
    points, _, _ = cloud_of(meshes / "box.obj")
    np.savetxt(tmp_path / "box.txt", points * 1000 + [5000, -20, 3])
    out = tmp_path / "out"
    flags = [
        "--input_file",
        str(tmp_path / "box.txt"),
        "--output_dir",
        str(out),
        "--model",
        str(full_vqvae),
        "--resolution",
        "8",
        "--format",
        "obj",
        "--no-pictures",
    ]
    assert infer_vqvae.main(flags) == 0
    vertices = np.array(
        [
            line.split()[1:]
            for line in (out / "box.obj").read_text().splitlines()
            if line.startswith("v ")
        ],
        dtype=float,
    )
    half = 500 / 0.95  # of the cube, in which the box's longest side of 1000 fills 0.95
    assert np.allclose(vertices.min(axis=0), np.array([5000, -20, 3]) - half, atol=5)
    assert np.allclose(vertices.max(axis=0), np.array([5000, -20, 3]) + half, atol=5)
    assert "all" not in json.loads((out / "summary.json").read_text())["means"]


def test_what_can_be_read_is_listed_for_a_file_that_cannot(full_vqvae, tmp_path, capsys):
    (tmp_path / "scan.pcd").write_text("no known format")
    flags = [
        "--input_file",
        str(tmp_path / "scan.pcd"),
        "--output_dir",
        str(tmp_path / "out"),
        "--model",
        str(full_vqvae),
    ]
    assert infer_vqvae.main(flags) == 1
    assert (
        "suffix '.pcd' is not supported, allowed are .glb, .gltf, .obj, .ply, .stl, .off, .xyz"
        in capsys.readouterr().err
    )
    (tmp_path / "empty").mkdir()
    assert infer_vqvae.main(["--input_file", str(tmp_path / "empty"), *flags[2:]]) == 2
    assert "no meshes, point clouds or tokens; looked for .glb" in capsys.readouterr().err


def test_a_cloud_gives_the_tokens_of_the_mesh_it_was_sampled_from(meshes, vqvae_run, tmp_path):
    vqvae = checkpoint.load_tokenizer(vqvae_run / "model")
    points, normals, mesh = cloud_of(meshes / "more" / "deep" / "ring.off")
    surface = sample_surface(mesh, 1500, np.random.default_rng(0))
    np.savez(tmp_path / "samples.npz", surface=surface, transform=mesh.to_source)
    np.savez(tmp_path / "points.npz", points=points, normals=normals)
    np.savez(tmp_path / "moved.npz", points=points * 1000 + 7, normals=normals)

    def tokens(surface: np.ndarray) -> torch.Tensor:
        return vqvae.tokenize(torch.from_numpy(surface)[None]).ids

    same, there, moved = (
        tokens(load_points(tmp_path / f"{name}.npz").draw(1500, np.random.default_rng(0)))
        for name in ("samples", "points", "moved")
    )
    assert torch.equal(same, tokens(surface))
    # the box of points is a little smaller than the mesh's, so these stand a little elsewhere, but
    # both alike
    assert (moved == there).float().mean() > 0.95


@pytest.mark.skipif(
    not DEV_MESHES.is_dir(), reason="the development meshes are absent; TAR3D_DATASETS"
)
def test_estimated_normals_reconstruct_real_shapes_as_well_as_true_ones():
    """Over 24 of them: IoU 0.79 with estimated normals, 0.80 with the meshes' own, 0.19 with these
    turned inward. A thin part may be lost with one that is turned."""
    vqvae = checkpoint.load_tokenizer("pretrained/tiny")
    scores = []
    for path in sorted(DEV_MESHES.rglob("*.glb"))[9::270]:
        mesh = load_mesh(path)
        true = sample_surface(mesh, 8192, np.random.default_rng(0))
        estimated = np.concatenate([true[:, :3], estimate_normals(true[:, :3])], axis=1)
        scores.append(
            [
                volume_iou(reconstruct(vqvae, surface, 32)[0], mesh, 20_000)
                for surface in (true, estimated)
            ]
        )
    lost = np.subtract(*np.array(scores).T)
    assert len(scores) >= 6 and np.median(lost) < 0.02 and (lost > 0.1).sum() <= 1


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--input_file", "none.glb"], "--input_file none.glb does not exist"),
        (["--model", "none"], "no model at none"),
        (["--device", "gpu"], "write cpu, cuda, cuda:N or mps"),
        (["--device", "cpu", "--low-vram"], "there is no GPU memory to save"),
        (["--output_dir", "MESHES"], "holds the input, which could be overwritten"),
    ],
)
def test_refusals_of_the_reconstruction(meshes, vqvae_run, capsys, flags, message):
    common = ["--input_file", str(meshes), "--model", str(vqvae_run / "model")]
    changed = [str(meshes) if f == "MESHES" else f for f in flags]
    assert exit_code(infer_vqvae.main, [*common, *changed]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--pc_size", "0"], ["--limit", "0"], ["--resolution", "-1"]])
def test_counts_are_at_least_one(capsys, flags):
    with pytest.raises(SystemExit) as stop:
        infer_vqvae.main(flags)
    assert stop.value.code == 2 and "must be at least 1" in capsys.readouterr().err
