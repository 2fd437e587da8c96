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
# Folders that the paths in a page's backticks may be relative to.
PATHS_FROM = {
    "README.md": [ROOT],
    "docs/architecture.md": [ROOT, ROOT / "tar3d", ROOT / "tar3d" / "training"],
}
SUFFIXES = (".py", ".sh", ".yaml", ".md", ".toml")
PLACEHOLDER = re.compile(r"[<*=:{]|\b[A-Z]{2,}\b|^owner/name$")
WRITTEN = ("outputs/", "data/toy")  # by the programs, so not there in a fresh checkout


def missing_paths(text: str, folders: list[Path]) -> list[str]:
    """Words in backticks that look like paths, hold no placeholder, and are in no folder."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    words = [word for span in spans for word in span.split()]
    return [
        word
        for word in words
        if ("/" in word or word.endswith(SUFFIXES))
        and not PLACEHOLDER.search(word)
        and not word.startswith(WRITTEN)
        and not any((folder / word).exists() for folder in folders)
    ]


@pytest.mark.parametrize("page", PATHS_FROM)
def test_paths_in_backticks_are_there(page):
    assert not missing_paths((ROOT / page).read_text(encoding="utf-8"), PATHS_FROM[page])


def test_a_path_that_is_not_there_is_found():
    text = "`gpt/model.py`, `gpt/modle.py` `--config configs/no.yaml` `DATA/x.py` `<a>/b` `a=c/d`"
    assert missing_paths(text, [ROOT / "tar3d"]) == ["gpt/modle.py", "configs/no.yaml"]


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
