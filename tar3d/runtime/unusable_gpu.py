"""A GPU that is there and that this build of torch cannot use, in a sentence with the remedy."""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from pathlib import Path

# The first Linux driver that runs programs of a major version of CUDA: CUDA Toolkit Release Notes,
# table "CUDA Toolkit and Minimum Required Driver Version for CUDA Minor Version Compatibility".
FIRST_DRIVERS = {"12": 525, "13": 580}
DRIVER_FILE = Path("/proc/driver/nvidia/version")


def unusable_gpu() -> str:
    """Why torch cannot use the NVIDIA GPU of this machine, and what to install; "" if it can.

    Also "" where there is no sign of such a GPU: neither its kernel driver nor nvidia-smi.
    """
    import torch

    if torch.cuda.is_available() or not (DRIVER_FILE.is_file() or shutil.which("nvidia-smi")):
        return ""
    here = f"this machine has an NVIDIA driver, but torch {torch.__version__} finds no GPU"
    if torch.version.cuda is None:
        where = "PyPI's is one on Windows" if sys.platform == "win32" else "a +cpu build is one"
        return (
            f"{here}: it is a build without CUDA ({where}); install a CUDA build of the same "
            "version as https://pytorch.org/get-started/locally says"
        )
    found, first = driver_version(), FIRST_DRIVERS.get(torch.version.cuda.split(".")[0])
    if found and first and found < first:
        return (
            f"{here}: the driver is {found}, and CUDA {torch.version.cuda} needs {first} or later; "
            "update the driver, or install a torch for an older CUDA as "
            "https://pytorch.org/get-started/previous-versions says"
        )
    return f"{here}: see whether `nvidia-smi` lists it and CUDA_VISIBLE_DEVICES does not hide it"


def driver_version() -> int | None:
    """The major version of the NVIDIA kernel driver, None where it is not told."""
    text = DRIVER_FILE.read_text(encoding="utf-8") if DRIVER_FILE.is_file() else ""
    match = re.search(r"Kernel Module.*?\s(\d{3,})\.\d+", text)
    return int(match[1]) if match else None


def warn_of_unusable_gpu() -> None:
    """Warns if a script that would take a GPU runs on the CPU beside one."""
    if reason := unusable_gpu():
        warnings.warn(f"{reason}. This runs on the CPU", stacklevel=3)
