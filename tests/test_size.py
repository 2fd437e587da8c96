"""Sizes that a reader feels: width of lines, length of functions and files.

python tests/test_size.py        prints the figures of the whole checkout
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100
FUNCTION_LINES = {"package": 60, "scripts": 80}
FILE_LINES = 400
TRAINING_SCRIPT_LINES = 300
# The beginning of the comment right above a def that exceeds the limit, with the reason.
REASON = "# longer than"

IGNORED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def package_files() -> list[Path]:
    return sorted((ROOT / "tar3d").rglob("*.py"))


def script_files() -> list[Path]:
    return sorted(ROOT.glob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def long_functions(path: Path, limit: int, *, excused: bool = True) -> list[str]:
    """Functions above `limit` lines, decorators not counted, as "name (lines)".

    With `excused` those are left out whose line above begins with REASON.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = node.end_lineno - node.lineno + 1
        above = lines[node.lineno - 2].strip() if node.lineno > 1 else ""
        if length > limit and not (excused and above.startswith(REASON)):
            found.append(f"{node.name} ({length})")
    return found


@pytest.mark.parametrize("path", package_files(), ids=relative)
def test_functions_and_files_of_the_package_fit_a_screen(path):
    assert not long_functions(path, FUNCTION_LINES["package"])
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES


@pytest.mark.parametrize("path", script_files(), ids=relative)
def test_functions_of_the_scripts_fit_a_page(path):
    assert not long_functions(path, FUNCTION_LINES["scripts"])


@pytest.mark.parametrize("name", ["train_gpt.py", "train_vqvae.py"])
def test_a_training_script_reads_as_a_page(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= TRAINING_SCRIPT_LINES
    for visible in ("backward(", "clip", "step(", "schedule", "validate", "save"):
        assert visible in text, f"{name} no longer shows its {visible.rstrip('(')}"


def tokens_a_line(paths: list[Path]) -> float:
    """Python tokens of a code line; comments, docstrings and blank lines count for nothing."""
    tokens, code_lines = 0, 0
    for path in paths:
        text = path.read_text(encoding="utf-8")
        docstrings = {
            line
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if isinstance(node.value.value, str)
            for line in range(node.lineno, node.end_lineno + 1)
        }
        rows = set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type not in IGNORED and token.start[0] not in docstrings:
                tokens += 1
                rows.update(range(token.start[0], token.end[0] + 1))
        code_lines += len(rows)
    return tokens / code_lines


def main() -> None:
    """Prints the figures that docs/log compares from one version to the next."""
    package, scripts = package_files(), script_files()
    everything = [p for p in ROOT.rglob("*.py") if ".ci-venv" not in p.parts]
    lines = [
        line for path in package + scripts for line in path.read_text(encoding="utf-8").splitlines()
    ]
    all_long = [name for p in package + scripts for name in long_functions(p, 60, excused=False)]
    print(f"Python tokens a code line       {tokens_a_line(package + scripts):.1f}")
    print(
        f"lines over {WIDTH} columns          {sum(len(x) > WIDTH for x in lines) / len(lines):.1%}"
    )
    print(f"functions over 60 lines         {len(all_long)}")
    long_files = [p for p in everything if len(p.read_text("utf-8").splitlines()) > 300]
    print(f"Python files over 300 lines     {len(long_files)}")
    readme = (ROOT / "README.md").read_text("utf-8").splitlines()
    print(f"lines of README.md              {len(readme)}")
    print(f"lines of the package            {len(lines)}")


if __name__ == "__main__":
    main()
