"""The provenance of a figure: machine, versions, commit, memory, command line."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d.paths import PACKAGE

if TYPE_CHECKING:
    import torch


def describe_machine(device: torch.device) -> dict[str, str]:
    """Machine, versions and commit, by name."""
    import torch

    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{os.cpu_count()} x {_cpu_name()}"
    )
    return {
        "machine": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the code that runs; "+changes" follows where the tree differs from it.

    "unknown" outside a checkout of this project, as for an installed package.
    """
    if not (PACKAGE.parent / ".git").exists():  # a checkout around an environment is another's
        return "unknown"
    git = ["git", "-C", str(PACKAGE.parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed else "")


def peak_memory(device: torch.device) -> str:
    """Largest resident memory of this process so far, and of the GPU where there is one."""
    import torch

    resident = peak_resident_bytes()
    text = "unknown on Windows" if resident is None else f"{resident / 2**30:.2f} GiB"
    return text + (
        f", GPU {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
        if device.type == "cuda"
        else ""
    )


def peak_resident_bytes() -> int | None:
    """Largest resident memory of this process so far; None on Windows.

    On Linux from /proc, because ru_maxrss of a new process starts at what its parent held when it
    was forked.
    """
    if sys.platform == "win32":
        return None
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def command_line() -> str:
    """The command that started this program, as one would type it again in this folder."""
    module = sys.modules["__main__"].__spec__  # set by python -m, None for a script
    program = ["-m", module.name.removesuffix(".__main__")] if module else [sys.argv[0]]
    return shlex.join(["python", *program, *sys.argv[1:]])
