"""Fixtures that several folders share: meshes of primitive shapes, and a small data set made from
them.

Packages for meshes are loaded by the fixtures: the tests of the GPT run where there are none.
"""

from pathlib import Path

import pytest
import torch

from tar3d.config import PointSamplingConfig, ViewConfig

SAMPLES = PointSamplingConfig(surface_points=200, volume_points=300, near_points=100)
VIEWS = ViewConfig(count=2, size=32)
# Marked quick: folders and files of tests/ that together take less than 60 s (pytest -m quick).
QUICK = (
    "gpt/test_sampling.py",
    "metrics",
    "optim",
    "test_config.py",
    "test_contracts.py",
    "test_packaging.py",
    "test_token_order.py",
)


def write_meshes(folder: Path) -> Path:
    """Six shapes in nested folders, two of them with one stem."""
    import trimesh

    shapes = {
        "box.obj": trimesh.creation.box((1, 0.6, 0.4)),
        "ball.glb": trimesh.creation.icosphere(2),
        "ball.obj": trimesh.creation.icosphere(1),
        "more/tube.ply": trimesh.creation.cylinder(0.4, 1.0),
        "more/deep/ring.off": trimesh.creation.torus(0.7, 0.25),
        "more/pill.stl": trimesh.creation.capsule(1.0, 0.4),
    }
    for name, shape in shapes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape.export(path)
    return folder


@pytest.fixture
def meshes(tmp_path) -> Path:
    return write_meshes(tmp_path / "meshes")


@pytest.fixture(scope="session")
def samples(tmp_path_factory) -> Path:
    """A data set folder with samples, two views a shape and splits; read only."""
    from tar3d.data.prepare.make_samples import make_samples

    root = tmp_path_factory.mktemp("data")
    make_samples(write_meshes(root / "given"), root / "set", SAMPLES, views=VIEWS)
    return root / "set"


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(config, items):
    quick = tuple(Path(__file__).parent / name for name in QUICK)
    for item in items:
        if any(item.path.is_relative_to(path) for path in quick):
            item.add_marker("quick")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("soak") and "soak" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="takes long: run it with -m soak"))
