"""The import rules of the package, held against the code's own imports.

Imports climb one way: layouts -> contracts, config -> mesh, tokenizer, condition, gpt, optim,
metrics -> data, checkpoint -> pipeline -> training, evaluation -> scripts. Imports for type
checkers only (`if TYPE_CHECKING`) couple nothing and are not counted.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

BASE = {"config", "contracts", "folders", "io", "layouts", "paths", "upgrade"}
# What each part of the package may import from it, besides itself. A new file or folder needs a
# line here.
MAY_IMPORT: dict[str, set[str]] = {
    "config": {"layouts", "paths", "upgrade"},
    "contracts": {"layouts"},
    "folders": set(),
    "io": set(),
    "paths": set(),
    "upgrade": set(),
    "parallel": {"io"},
    "layouts": set(),
    "runtime": BASE,
    "throughput": BASE,
    "mesh": BASE,
    "tokenizer": BASE,
    "condition": BASE,
    "gpt": BASE,
    "optim": BASE,
    "metrics": BASE | {"mesh", "runtime"},
    "checkpoint": BASE | {"runtime", "tokenizer", "condition", "gpt", "optim"},
    "data": BASE
    | {"parallel", "runtime", "mesh", "tokenizer", "condition", "metrics", "checkpoint"},
}
MAY_IMPORT["placement"] = BASE
MAY_IMPORT["conditional_gpt"] = BASE | {"checkpoint", "condition", "gpt"}
MAY_IMPORT["prepared_conditions"] = BASE | {"conditional_gpt", "condition", "mesh"}
MAY_IMPORT["pipeline"] = set(MAY_IMPORT)
MAY_IMPORT["training"] = set(MAY_IMPORT)
MAY_IMPORT["evaluation"] = set(MAY_IMPORT) - {"training"}
MAY_IMPORT["doctor_report"] = set(MAY_IMPORT)
MAY_IMPORT["doctor"] = {"runtime", "doctor_report"}
# The same for the folders of tar3d/data. The files beside them, commands and defaults, may import
# all of them.
DATA_MAY_IMPORT: dict[str, set[str]] = {
    "formats": set(),
    "datasets": {"formats"},
    "prepare": {"formats", "datasets"},
    "tokens": {"formats"},
    "validate": {"formats", "datasets", "prepare"},
    "toy": {"formats"},
}
TORCH_FREE = ("config", "contracts", "folders", "io", "layouts", "paths", "upgrade")
TORCH_FREE += ("mesh", "parallel")
# Of those, what runs where the field does, and what no data worker may load therefore.
WITH_TORCH = {
    f"tar3d/mesh/{name}.py" for name in ("extract", "lattice", "lattice_field", "marching_cubes")
}
# Modules besides that load no torch when they are imported: a process that samples meshes.
STARTS_WITHOUT_TORCH = ("tar3d.data.prepare.sample_mesh", "tar3d.data.make_samples")

# Packages that a plain installation may lack, or that are too slow to load for those who do not use
# them.
OPTIONAL = {
    "DracoPy",
    "embreex",
    "fast_simplification",
    "fla",
    "flash_attn",
    "gradio",
    "huggingface_hub",
    "lightning_attn",
    "lpips",
    "manifold3d",
    "matplotlib",
    "objaverse",
    "pandas",
    "ray",
    "tensorboard",
    "tokenizers",
    "torchmetrics",
    "torchvision",
    "transformers",
    "triton",
    "wandb",
}
# Files that may load one of them at module level all the same: path -> packages.
LOADS_AT_ONCE: dict[str, set[str]] = {
    "tar3d/mesh/render.py": {"embreex"},  # a renderer is nothing without its ray tracer
    # nor kernels without their compiler
    "tar3d/gpt/decode_triton.py": {"triton"},
    "tar3d/gpt/triton_attention.py": {"triton"},
    "tar3d/gpt/triton_inputs.py": {"triton"},
    "tar3d/gpt/triton_sampling.py": {"triton"},
}
NOT_EVERYWHERE = {"triton"}  # of those, what a complete installation may lack: Linux alone has it
# GPL, or for non-commercial use only, as whole packages or as the part of a permissive one.
NOT_PERMISSIVE = (
    "igl.copyleft",
    "nvdiffrast",
    "pymeshlab",
    "bpy",
    "tetgen",
    "kaolin.non_commercial",
)


def package_files() -> list[Path]:
    return sorted((ROOT / "tar3d").rglob("*.py"))


def script_files() -> list[Path]:
    return sorted(ROOT.glob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))


def part_of(path: Path) -> str:
    """tar3d/mesh/points.py -> "mesh", tar3d/config/gpt.py -> "config", tar3d/__init__.py -> ""."""
    first = path.relative_to(ROOT / "tar3d").parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    )


def imports(path: Path, *, at_once: bool = False) -> Iterator[str]:
    """Dotted names that the file imports at run time; with `at_once`, only those that importing the
    file itself loads."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                folder = path.relative_to(ROOT).parent.parts
                base = ".".join(folder[: len(folder) - child.level + 1]) if child.level else ""
                module = ".".join(filter(None, (base, child.module)))
                yield from (f"{module}.{alias.name}" for alias in child.names)
            elif is_type_checking(child):
                yield from (
                    name for other in child.orelse for name in walk(ast.Module([other], []))
                )
            elif not (
                at_once and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            ):
                yield from walk(child)

    yield from walk(ast.parse(path.read_text(encoding="utf-8"), str(path)))


def parts_imported(path: Path) -> set[str]:
    names = (name.split(".") for name in imports(path))
    return {name[1] for name in names if name[0] == "tar3d" and len(name) > 1}


def imported_files(path: Path) -> set[str]:
    """tar3d.mesh.load.weld -> "tar3d/mesh/load" """
    return {"/".join(name.split(".")[:3]) for name in imports(path) if name.startswith("tar3d.")}


def packages_imported(path: Path, *, at_once: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imports(path, at_once=at_once)}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_part_of_the_package_has_its_rule():
    unknown = {relative(p) for p in package_files() if part_of(p) and part_of(p) not in MAY_IMPORT}
    assert not unknown, f"say in MAY_IMPORT what these may import: {sorted(unknown)}"


def test_the_rules_themselves_climb_one_way():
    """No part may reach itself through others: the table has an order."""
    reach = {part: set(allowed) for part, allowed in MAY_IMPORT.items()}
    for _ in reach:
        for part in reach:
            reach[part] |= set().union(*(reach[other] for other in reach[part]))
    assert not [part for part in reach if part in reach[part]]


@pytest.mark.parametrize("path", package_files(), ids=relative)
def test_imports_climb_one_way(path):
    part = part_of(path)
    allowed = MAY_IMPORT.get(part, set()) | {part}
    assert parts_imported(path) <= allowed, (
        f"{relative(path)} imports {sorted(parts_imported(path) - allowed)}"
    )


def test_the_folders_of_data_climb_one_way():
    data = ROOT / "tar3d" / "data"
    folders = {p.name for p in data.iterdir() if (p / "__init__.py").is_file()}
    assert folders == set(DATA_MAY_IMPORT), "say in DATA_MAY_IMPORT what a folder may import"
    for path in data.glob("*/*.py"):
        found = {
            name.split(".")[2] for name in imports(path) if name.startswith("tar3d.data.")
        } - DATA_MAY_IMPORT[path.parent.name]
        assert found <= {path.parent.name}, f"{relative(path)} imports {sorted(found)}"


@pytest.mark.parametrize("path", package_files() + script_files(), ids=relative)
def test_nothing_is_imported_that_is_not_permissive(path):
    assert not [
        name
        for name in imports(path)
        if f"{name}.".startswith(tuple(f"{other}." for other in NOT_PERMISSIVE))
    ]


def test_gpt_and_tokenizer_meet_only_in_the_pipeline():
    both = [
        relative(p)
        for p in package_files()
        if {"gpt", "tokenizer"} <= parts_imported(p) | {part_of(p)}
    ]
    each_by_itself = {"tar3d/doctor_report.py", "tar3d/training/memory.py"}
    assert set(both) <= {"tar3d/pipeline.py"} | each_by_itself


def test_nothing_imports_a_script():
    scripts = {p.stem for p in ROOT.glob("*.py")} | {"benchmarks"}
    for path in package_files() + script_files():
        allowed = {"benchmarks"} if path.is_relative_to(ROOT / "benchmarks") else set()
        assert not (packages_imported(path) & scripts) - allowed, (
            f"{relative(path)} imports a script"
        )


def is_torch_free(path: Path) -> bool:
    return part_of(path) in TORCH_FREE and relative(path) not in WITH_TORCH


@pytest.mark.parametrize("path", [p for p in package_files() if is_torch_free(p)], ids=relative)
def test_geometry_and_configuration_never_load_torch(path):
    assert "torch" not in packages_imported(path)
    assert not {f"{name}.py" for name in imported_files(path)} & WITH_TORCH, "nor a file that does"


def test_extraction_is_for_those_who_query_a_field():
    """No file of `data` among them: its workers must start fast."""
    importers = {
        relative(p)
        for p in package_files()
        if {f"{name}.py" for name in imported_files(p)} & WITH_TORCH
    }
    assert not [
        name
        for name in importers - WITH_TORCH
        if not name.startswith(("tar3d/pipeline", "tar3d/evaluation", "tar3d/training"))
    ]


@pytest.mark.parametrize("path", package_files() + script_files(), ids=relative)
def test_optional_packages_are_loaded_where_they_are_used(path):
    found = packages_imported(path, at_once=True) & OPTIONAL
    assert found <= LOADS_AT_ONCE.get(relative(path), set()), (
        f"{relative(path)} loads {sorted(found)} when it is imported"
    )


def test_exceptions_still_exist():
    for name, packages in LOADS_AT_ONCE.items():
        assert packages <= packages_imported(ROOT / name, at_once=True), (
            f"{name} no longer needs its exception"
        )
    for name in WITH_TORCH:
        assert "torch" in packages_imported(ROOT / name), f"{name} no longer needs its exception"


IMPORT_ALL = """
import builtins, importlib, sys
sys.modules["torchvision"] = None  # any import of it now fails
torch_free, others = (argument.split(",") for argument in sys.argv[1:])
stdout, print_ = sys.stdout, builtins.print
for name in torch_free:
    importlib.import_module(name)
assert "torch" not in sys.modules, "a module that promises to do without torch loads it"
import numpy, torch
def state():
    return (torch.get_rng_state().tolist(), repr(numpy.random.get_state()),
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),
            torch.nn.Linear)
before = state()
for name in others:
    importlib.import_module(name)
assert "torch._dynamo" not in sys.modules, "importing the package loads torch's compiler (2 s)"
assert state() == before, "importing the package changes global state of torch or numpy"
assert sys.stdout is stdout and builtins.print is print_, "importing replaces stdout or print"
"""


def test_every_module_imports_without_torchvision_and_without_side_effects(tmp_path):
    def module_name(path: Path) -> str:
        return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")

    torch_free = [module_name(p) for p in package_files() if is_torch_free(p) or not part_of(p)]
    torch_free += STARTS_WITHOUT_TORCH
    lacking = {package for package in NOT_EVERYWHERE if importlib.util.find_spec(package) is None}
    others = [
        module_name(p)
        for p in package_files()
        if module_name(p) not in torch_free and not LOADS_AT_ONCE.get(relative(p), set()) & lacking
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    here = tmp_path / "here"
    here.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, ",".join(torch_free), ",".join(others)],
        cwd=here,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "", "importing the package prints"
    assert [p.name for p in here.iterdir()] == [], "importing the package writes files"
