"""Meshes that take too much, and runs that are killed: nothing else is lost. (Processes import this
file: no torch here.)"""

import importlib
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fork_server import fork
from made_data import everything, facts

from tar3d.config import PointSamplingConfig, ViewConfig
from tar3d.data.make_samples import main

SMALL = PointSamplingConfig(surface_points=200, volume_points=300, near_points=100)
FLAGS = ["surface_points=200", "volume_points=300", "near_points=100", "views.count=0"]
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")

module = importlib.import_module("tar3d.data.prepare.make_samples")
sample_mesh = module.sample_mesh


def bomb(job, **settings):
    match job.id:
        case "box":
            time.sleep(600)
        case "ball":
            os.abort()
        case "ball.obj":
            return [np.empty(1 << 27) for _ in range(20)]  # 1 GB each
    return sample_mesh(job, **settings)


@needs_linux
def test_bombs_are_refused_and_the_rest_goes_on(meshes, tmp_path, monkeypatch):
    module.make_samples(meshes, tmp_path / "calm", SMALL)
    monkeypatch.setattr(module, "sample_mesh", bomb)
    command = [str(meshes), "--out", str(tmp_path / "out"), "--workers", "2", *FLAGS]
    assert main([*command, "--seconds", "5", "--gigabytes", "2"]) == 1
    assert {
        row["id"]: row["reason"] for row in facts(tmp_path / "out") if row["status"] == "refused"
    } == {
        "box": f"{meshes / 'box.obj'}: it took longer than 5 s",
        "ball": f"{meshes / 'ball.glb'}: its process was ended by SIGABRT",
        "ball.obj": f"{meshes / 'ball.obj'}: it needs more than 2 GB of memory",
    }
    assert (
        len(facts(tmp_path / "out")) == 6
        and len(list((tmp_path / "out" / "samples").glob("*.npz"))) == 3
    )
    monkeypatch.undo()
    assert main(command) == 0  # what was refused is tried again
    assert facts(tmp_path / "out") == facts(tmp_path / "calm")
    assert everything(tmp_path / "out") == everything(tmp_path / "calm")


def write_dense_sphere(path: Path, side: int) -> None:
    """A binary PLY of 2 side^2 faces or so."""
    around, up = np.meshgrid(
        np.linspace(0, 2 * np.pi, side, endpoint=False), np.linspace(0, np.pi, side)
    )
    points = np.stack(
        [np.cos(around) * np.sin(up), np.cos(up), np.sin(around) * np.sin(up)], axis=-1
    )
    row, column = np.meshgrid(np.arange(side - 1) * side, np.arange(side), indexing="ij")
    a, b = row + column, row + (column + 1) % side
    faces = np.concatenate(
        [
            np.stack(corners, axis=-1).reshape(-1, 3)
            for corners in ((a, b, b + side), (a, b + side, a + side))
        ]
    )
    listed = np.empty(len(faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    listed["count"], listed["corners"] = 3, faces
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {side * side}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    path.write_bytes(header.encode() + points.astype("<f4").tobytes() + listed.tobytes())


@needs_linux
@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--seconds", "3"], "it took longer than 3 s"),
        (["--gigabytes", "0.6"], "it needs more than 0.6 GB of memory"),
    ],
)
def test_a_mesh_that_is_too_large_for_the_limits(meshes, tmp_path, flags, reason):
    write_dense_sphere(meshes / "huge.ply", 1400)  # 3.9 M faces
    assert (
        main([str(meshes), "--out", str(tmp_path / "out"), "--workers", "1", *flags, *FLAGS]) == 1
    )
    assert {r["id"]: r["reason"] for r in facts(tmp_path / "out") if r["reason"]} == {
        "huge": f"{meshes / 'huge.ply'}: {reason}"
    }
    assert len(facts(tmp_path / "out")) == 7


def test_kills_lose_nothing(meshes, tmp_path):
    """Six kills at random points, half of them of runs that pack: the run after them ends as one
    that nobody disturbed."""
    for k in range(30):
        (meshes / f"copy{k}.obj").write_bytes((meshes / "box.obj").read_bytes())
    (meshes / "points.obj").write_text("v 0 0 0\nv 1 1 1\n")  # refused
    module.make_samples(meshes, tmp_path / "calm", SMALL, views=ViewConfig(count=2, size=64))
    assert len(facts(tmp_path / "calm")) == 37
    out, chance, rows = tmp_path / "out", random.Random(os.urandom(8)), []
    command = [
        "-m",
        "tar3d.data.make_samples",
        str(meshes),
        "--out",
        str(out),
        "--workers",
        "1",
        *FLAGS[:3],
        "views.count=2",
        "views.size=64",
    ]
    for k in range(6):
        before = changed(out / "report.csv")
        run = fork(command + ["--shard-size", "3"] * (k % 2))
        while changed(out / "report.csv") == before:  # it begins
            assert run.poll() is None
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 1.0))
        run.kill()
        run.wait()
        rows.append(len(facts(out)))
    # whether or not a kill happened to leave one
    (out / "samples" / ".ball.npz.7.part").write_bytes(b"half")
    run = fork(command)
    printed, _ = run.communicate()
    assert run.returncode == 1, printed
    assert everything(out) == everything(tmp_path / "calm"), rows
    assert facts(out) == facts(tmp_path / "calm"), rows
    assert (out / "splits.json").read_bytes() == (tmp_path / "calm" / "splits.json").read_bytes()
    assert not list(out.rglob(".*.part"))


def changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0
