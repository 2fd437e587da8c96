"""What all commands of the project have in common: quick answers, the console, Ctrl-C, progress."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tar3d import __version__, runtime
from tar3d.runtime import command, progress

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
DATA = ["inspect", "make_samples", "make_tokens", "objaverse", "toy.__main__"]
BENCHMARKS = ["run", "ablate", "labels", "sampling", "gpu_session", "plot", "curves"]
COMMANDS = [
    *SCRIPTS,
    "tar3d.doctor",
    *(f"tar3d.data.{name}" for name in DATA),
    *(f"benchmarks.{name}" for name in BENCHMARKS),
]
# One process for all: a module of one command would be found in the next, and none may load torch.
ASK_ALL = """
import importlib, sys
answers = {"--help": 0, "--version": 0, "--no-such-flag": 2}
for name in sys.argv[1:]:
    main = importlib.import_module(name).main
    for flag, expected in answers.items():
        try:
            code = main([flag])
        except SystemExit as stop:
            code = stop.code
        assert code == expected, (name, flag, code)
        slow = {"torch", "lightning_fabric", "tensorboard", "transformers"} & set(sys.modules)
        assert not slow, f"{name} {flag} loads {slow}"
"""


def python(
    *arguments: str, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
        env=os.environ | environment,
    )


def test_help_version_and_wrong_arguments_are_answered_without_torch(tmp_path):
    result = python("-c", ASK_ALL, *COMMANDS, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr[-2000:]
    for name in DATA:
        usage = f"python -m tar3d.data.{name.removesuffix('.__main__')} "
        assert usage in result.stdout, "the help says how to call it"
    assert list(tmp_path.iterdir()) == []
    assert result.stdout.count(f"tar3d-efficient {__version__}, commit ") == len(COMMANDS)
    assert result.stderr.count(": error: ") == len(COMMANDS)


def test_waiting_threads_sleep_unless_the_environment_says_otherwise(monkeypatch):
    @command
    def main(argv: list[str] | None = None) -> int:
        return len(os.environ["OMP_WAIT_POLICY"])

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert main() == len("PASSIVE")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert main() == len("ACTIVE")


def test_an_interrupted_command_ends_in_one_line(capsys):
    @command
    def main(argv: list[str] | None = None) -> int:
        raise KeyboardInterrupt

    assert main([]) == 130
    assert capsys.readouterr().err.strip().count("\n") == 0


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_without_the_character_shows_its_code(encoding):
    code = "from tar3d.runtime import command; command(lambda argv: print('a \u6905') or 0)()"
    result = python("-c", code, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert (result.returncode, result.stdout) == (0, "a \\u6905\n"), result.stderr


def test_progress_in_a_file_is_lines(monkeypatch, capsys):
    with runtime.progress_bar(total=2, desc="GPT") as bar:
        for _ in range(2):
            bar.update()
            bar.set_postfix_str("loss 1")
    assert capsys.readouterr().err.count("\n") == 1, "a short run has one line, its last"
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 0)
    for _ in runtime.progress_bar(range(3), unit="shape", desc="shapes"):
        pass
    with runtime.progress_bar(total=2, desc="GPT", leave=False) as bar:
        bar.set_postfix(loss=1.5, refresh=False)
        bar.update()
        bar.write("validated")
    with runtime.progress_bar(total=2, desc="never", disable=True) as bar:
        bar.update()
    output = capsys.readouterr()
    assert output.out == "validated\n" and "\r" not in output.err
    lines = output.err.splitlines()
    assert lines[-1].startswith("GPT: 1/2") and "loss=1.5" in lines[-1]
    assert [line[:11] for line in lines if line.startswith("shapes: ")][-1] == "shapes: 3/3"


def test_texts_are_read_and_written_as_utf_8():
    """Whatever the console's encoding is."""
    code = [
        *ROOT.glob("*.py"),
        *(ROOT / "tar3d").rglob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
    ]
    for path in code:
        for call in re.findall(
            r"\.(?:read|write)_text\(.*?\)\n", path.read_text("utf-8"), re.DOTALL
        ):
            assert "utf-8" in call, f"{path}: {call}"


def test_every_bar_is_made_in_one_place():
    paths = [
        *ROOT.glob("*.py"),
        *(path for name in ("tar3d", "benchmarks") for path in (ROOT / name).rglob("*.py")),
    ]
    users = {path.relative_to(ROOT).as_posix() for path in paths if "import tqdm" in read(path)}
    assert users == {"tar3d/runtime/progress.py"}


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
