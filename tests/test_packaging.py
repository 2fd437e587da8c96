"""The package's metadata against the requirements files, and what a wheel holds."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = METADATA["project"]
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}


def lines(name: str) -> set[str]:
    """The requirements of a file, without those of files that it reads."""
    text = (ROOT / f"requirements{name}.txt").read_text(encoding="utf-8")
    found = (re.sub("#.*", "", line).strip() for line in text.splitlines())
    return {line for line in found if line and not line.startswith("-r")}


def plain(requirements: list[str]) -> set[str]:
    return {line.replace("'", '"') for line in requirements}


def extra(name: str) -> set[str]:
    """The requirements of an extra, with those of the extras that it includes."""
    found = plain(PROJECT["optional-dependencies"][name])
    for line in [line for line in found if line.startswith(PROJECT["name"])]:
        included = line.removeprefix(f"{PROJECT['name']}[").removesuffix("]").split(",")
        found = found - {line} | {one for name in included for one in extra(name)}
    return found


def test_dependencies_are_the_lines_of_requirements_txt():
    pinned, lowest = "torch==2.13.0", "torch>=2.11"
    assert pinned in lines("") and lowest in PROJECT["dependencies"]
    assert lines("") - {pinned} == set(PROJECT["dependencies"]) - {lowest}
    assert "torch==" not in "".join(PROJECT["dependencies"])
    assert f"install {pinned} --index-url" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_extras_are_the_lines_of_the_other_files():
    assert extra("cuda") == lines("-cuda")
    assert extra("demo") == lines("-demo")
    assert extra("dev") == lines("-dev") | lines("-demo")
    assert extra("ray") == {line for line in lines("-dev") if line.startswith("ray")}


def test_every_script_is_a_command_that_returns_its_exit_code():
    commands = PROJECT["scripts"]
    assert {
        f"tar3d-{name.replace('_', '-')}": f"tar3d_scripts.{name}:main" for name in SCRIPTS
    } == {name: target for name, target in commands.items() if "tar3d_scripts" in target}
    assert set(commands.values()) - {f"tar3d_scripts.{name}:main" for name in SCRIPTS} == {
        "tar3d.doctor:main"
    }
    for path in [*ROOT.glob("*.py"), ROOT / "tar3d" / "doctor.py"]:
        text = path.read_text(encoding="utf-8")
        assert "def main(argv: list[str] | None = None) -> int:" in text, path


def test_every_folder_of_the_package_is_listed():
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "tar3d").rglob("*.py")}
    there = {".".join(folder.parts) for folder in folders} | {"tar3d_scripts"}
    listed = set(METADATA["tool"]["setuptools"]["packages"])
    assert there == listed, "pyproject.toml, [tool.setuptools] packages: add or remove these"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The files of a wheel, as setuptools lays them out, without pip and without a network."""
    setuptools = pytest.importorskip("setuptools", minversion="77")
    del setuptools
    folder = tmp_path_factory.mktemp("built")
    command = "from setuptools import setup; setup()"
    options = ["-q", "build_py", "--build-lib", str(folder)]
    subprocess.run([sys.executable, "-c", command, *options], cwd=ROOT, check=True)
    return folder


def test_a_wheel_holds_the_package_the_scripts_and_what_ships_with_them(built):
    files = {str(path.relative_to(built)) for path in built.rglob("*") if path.is_file()}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "tar3d").rglob("*.py")}
    tracked = ["git", "ls-files", "assets", "configs", "pretrained/tiny"]
    listing = subprocess.run(tracked, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a checkout")
    shipped = {*listing.stdout.split(), *(f"{name}.py" for name in SCRIPTS)}
    assert package <= files
    assert {f"tar3d_scripts/{name}" for name in shipped} <= files
    others = files - package - {f"tar3d_scripts/{name}" for name in shipped}
    assert not [name for name in others if not name.startswith("tar3d_scripts/pretrained/tiny/")]


def test_the_files_of_a_wheel_generate_a_mesh_from_any_folder(built, tmp_path):
    command = """
import sys
sys.path.insert(0, sys.argv[1])
from tar3d_scripts.run import main
import tar3d
assert tar3d.__file__.startswith(sys.argv[1])
sys.exit(main(["--resolution", "16", "--no-preview"]))
"""
    run = [sys.executable, "-I", "-c", command, str(built)]
    subprocess.run(run, cwd=tmp_path, check=True)
    assert (tmp_path / "outputs" / "generate" / "sample_image.glb").is_file()


def test_what_the_setup_of_flash_attn_imports_is_installed_before_it():
    text = (ROOT / "requirements-cuda.txt").read_text(encoding="utf-8")
    first, second = [line for line in text.splitlines() if "pip install " in line][-2:]
    assert {"psutil", "ninja", "wheel", "packaging"} <= set(first.split())
    assert "--no-build-isolation flash-attn==" in second
    assert "xformers" not in text, "it only wraps torch's own kernel"
