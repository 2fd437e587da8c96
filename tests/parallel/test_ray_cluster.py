"""Ray gives what one process gives, also when it loses a worker."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_data import everything, facts

from tar3d.config import PointSamplingConfig
from tar3d.data.prepare.make_samples import make_samples

ROOT = Path(__file__).parents[2]
pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")


def running_workers(parent: int) -> list[int]:
    """Ray workers below a process that have a task at the moment."""
    parents, busy = {}, set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(")")[2].split()[1]
                )
                if (entry / "cmdline").read_bytes().startswith(b"ray::_task"):
                    busy.add(int(entry.name))

    def is_below(pid: int) -> bool:
        return pid == parent or (pid in parents and is_below(parents[pid]))

    return [pid for pid in busy if is_below(pid)]


def test_a_lost_worker_costs_its_task_alone(meshes, tmp_path):
    """Two workers, of which one is killed in the middle; a mesh over the limits is refused as it is
    without Ray."""
    config = PointSamplingConfig(
        surface_points=20_000, volume_points=150_000, near_points=50_000
    )  # half a second a mesh
    for k in range(8):
        (meshes / f"copy{k}.stl").write_bytes((meshes / "more" / "pill.stl").read_bytes())
    (meshes / "points.obj").write_text("v 0 0 0\nv 1 1 1\n")  # refused
    make_samples(meshes, tmp_path / "one", config)
    out = tmp_path / "out"
    numbers = [
        f"{name}={getattr(config, name)}"
        for name in ("surface_points", "volume_points", "near_points")
    ]
    flags = ["--out", str(out), "--ray", "local", "--workers", "2", "views.count=0"]
    run = subprocess.Popen(
        [sys.executable, "-m", "tar3d.data.make_samples", str(meshes), *flags, *numbers],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        killed = None
        while killed is None and run.poll() is None:
            begun = (out / "report.csv").is_file() and len(facts(out)) >= 3
            for pid in running_workers(run.pid)[:1] if begun else []:
                os.kill(pid, signal.SIGKILL)
                killed, at = pid, len(facts(out))
            time.sleep(0.01)
        _, printed = run.communicate(timeout=100)
    finally:
        run.kill()
    assert killed and at < 13, printed
    assert run.returncode == 1, printed  # points.obj is refused, and that alone
    assert facts(out) == facts(tmp_path / "one") and len(facts(out)) == 15
    assert everything(out) == everything(tmp_path / "one")


def test_no_cluster_is_a_sentence(meshes, tmp_path):
    with pytest.raises(
        ValueError, match="no Ray cluster answers at 127.0.0.1:1 .*ray start --head"
    ):
        make_samples(
            meshes, tmp_path / "out", PointSamplingConfig(), ray="127.0.0.1:1", workers=None
        )
