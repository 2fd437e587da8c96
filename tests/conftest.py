"""Fixtures that several files share: meshes of primitive shapes, a data set, and small trainings.

Packages for meshes are loaded by the fixtures: the tests of the GPT run where there are none.
"""

import json
import os
import shutil
from pathlib import Path

# One thread a process, before torch is loaded: several processes test at a time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

from tar3d.config import PointSamplingConfig, ViewConfig

SAMPLES = PointSamplingConfig(surface_points=200, volume_points=300, near_points=100)
VIEWS = ViewConfig(count=2, size=32)
# Marked quick: folders and files of tests/ that together take less than 60 s (pytest -m quick).
QUICK = (
    "condition",
    "data/datasets",
    "data/formats",
    "evaluation/test_evaluator.py",
    "gpt/test_gated_attention.py",
    "gpt/test_generate.py",
    "gpt/test_layers.py",
    "gpt/test_linear_attention.py",
    "gpt/test_loss.py",
    "gpt/test_rope.py",
    "gpt/test_sampling.py",
    "layouts",
    "mesh/test_export.py",
    "mesh/test_gltf.py",
    "mesh/test_point_cloud.py",
    "mesh/test_points.py",
    "mesh/test_winding.py",
    "metrics",
    "optim",
    "test_checkpoint.py",
    "test_config.py",
    "test_contracts.py",
    "test_pipeline.py",
    "test_size.py",
    "test_train_vqvae.py",
    "test_upgrade.py",
    "tokenizer",
)
# Run first, as they take longest: several processes (-n), each with a file at a time, then end
# together.
FIRST = (
    "training/test_processes.py",
    "training/test_curves.py",
    "training/test_errors.py",
    "parallel/test_limits.py",
    "test_benchmarks.py",
    "test_own_meshes.py",
    "gpt/test_backends.py",
    "test_gpt_types.py",
    "training/test_deterministic.py",
    "training/test_state.py",
    "parallel/test_ray_cluster.py",
    "test_train_scripts.py",
    "test_doctor.py",
    "test_ablate.py",
    "test_eval_3d.py",
    "parallel/test_worker_processes.py",
    "test_pretrained.py",
    "data/prepare",
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


@pytest.fixture(scope="session")
def script_data(samples, tmp_path_factory) -> Path:
    """A copy of `samples` with three training and two validation shapes; trainings add tokens."""
    from tar3d.data.formats.dataset_folder import read_splits

    folder = tmp_path_factory.mktemp("scripts") / "set"
    shutil.copytree(samples, folder)
    ids = sorted(i for ids in read_splits(folder).values() for i in ids)
    splits = {"train": ids[:3], "val": ids[3:5], "test": ids[5:]}
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


@pytest.fixture(scope="session")
def fabric():
    from tar3d.runtime import start_fabric

    return start_fabric(None, 1, "32-true")


@pytest.fixture(scope="session")
def vqvae_run(script_data, fabric, tmp_path_factory) -> Path:
    """The run folder of a tokenizer after six steps."""
    from script_runs import VQVAE

    import train_vqvae
    from tar3d import config as configuration
    from tar3d.config import VQVAEConfig

    out = tmp_path_factory.mktemp("vqvae")
    config = configuration.load(VQVAEConfig, None, VQVAE)
    train_vqvae.train(config, out, fabric, {script_data: 1})
    return out


@pytest.fixture(scope="session")
def gpt_run(script_data, fabric, vqvae_run, tmp_path_factory) -> Path:
    """The run folder of a GPT after six steps, on the tokens of that tokenizer."""
    from script_runs import train_gpt_in

    out = tmp_path_factory.mktemp("gpt")
    train_gpt_in(out, script_data, fabric, vqvae_run / "model")
    return out


@pytest.fixture(scope="session")
def full_vqvae(vqvae_run, tmp_path_factory) -> Path:
    """The trained tokenizer, but with a field that is inside everywhere.

    A few steps cannot promise any surface, this one always gives the cube.
    """
    from tar3d import checkpoint
    from tar3d.config import VQVAEConfig

    model = checkpoint.load_tokenizer(vqvae_run / "model")
    with torch.no_grad():
        model.occupancy.logit.bias.fill_(1000.0)
    folder = tmp_path_factory.mktemp("full") / "tokenizer"
    return checkpoint.save_model(folder, model, VQVAEConfig(tokenizer=model.config), {}, "")


@pytest.fixture(scope="session")
def full_model(gpt_run, full_vqvae) -> Path:
    """The trained GPT beside that tokenizer."""
    from tar3d import checkpoint
    from tar3d import config as configuration
    from tar3d.config import GPTRunConfig

    folder = full_vqvae.parent
    shutil.copytree(gpt_run / "model" / "gpt_i23d", folder / "gpt_i23d")
    config = configuration.load(GPTRunConfig, folder / "gpt_i23d" / "config.yaml")
    tokenizer = checkpoint.load_tokenizer(full_vqvae)
    config.tokenizer_fingerprint = checkpoint.token_fingerprint(tokenizer)
    configuration.save(config, folder / "gpt_i23d" / "config.yaml")
    return folder


def in_tests(names: tuple[str, ...]) -> tuple[Path, ...]:
    """Folders and files of tests/ by name; a name that is not there is an error."""
    paths = tuple(Path(__file__).parent / name for name in names)
    assert all(path.exists() for path in paths), paths
    return paths


def pytest_configure(config):
    """Hides GPUs unless tests marked gpu are selected, and makes torch a CUDA build.

    Curves and resumed trainings are compared bit by bit, as a CPU computes them. PyPI's torch for
    Linux is a CUDA build, with a version of CUDA whether or not there is a driver.
    """
    selected = config.option.markexpr
    if "gpu" not in selected or "not gpu" in selected:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.version.cuda = torch.version.cuda or "13.0"


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(config, items):
    quick, first = in_tests(QUICK), in_tests(FIRST)
    for item in items:
        if any(item.path.is_relative_to(path) for path in quick):
            item.add_marker("quick")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("soak") and "soak" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="takes long: run it with -m soak"))
    files = {item.path for item in items}
    place = {file: [not file.is_relative_to(path) for path in first] for file in files}
    items.sort(key=lambda item: place[item.path])
