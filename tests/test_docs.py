"""README and docs: what they point at is there, and the Python in them runs."""

import re
from pathlib import Path

import pytest

from tar3d.mesh.load import load_mesh

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "pretrained").rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_and_pictures_are_there(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    missing = [
        t for t in targets if "://" not in t and not (page.parent / t.partition("#")[0]).exists()
    ]
    assert not missing


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    (tmp_path / "pretrained").symlink_to(ROOT / "pretrained")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    for name in ("shape_0.glb", "shape_1.glb"):
        assert len(load_mesh(tmp_path / name).faces) > 100
