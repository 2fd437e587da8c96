"""The commands of tar3d.data keep the names that users type, from any folder."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ["make_samples", "make_tokens", "inspect", "objaverse", "toy"]
# all in one process, because loading torch takes longest
SHOW_HELP = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(f"tar3d.data.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        print(f"{name} ended with {stop.code}")
"""


def test_commands_show_their_help_from_another_folder(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", SHOW_HELP, *COMMANDS],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    )
    for name in COMMANDS:
        assert f"{name} ended with 0" in run.stdout
        assert f"python -m tar3d.data.{name} " in run.stdout, "the help says how to call it"
    assert list(tmp_path.iterdir()) == []
