"""How code runs: devices and processes, repeated blocks of a model, the machine, progress bars."""

from tar3d.runtime.arguments import add_device_arguments, positive_int
from tar3d.runtime.blocks import prepare_blocks, repeated_blocks, shard_blocks, uncompiled
from tar3d.runtime.devices import (
    COMPUTE_DTYPES,
    PRECISIONS,
    choose_device,
    deterministic,
    resolve_precision,
)
from tar3d.runtime.fabric import start_fabric
from tar3d.runtime.machine import (
    command_line,
    commit,
    describe_machine,
    peak_memory,
    peak_resident_bytes,
)
from tar3d.runtime.model_arguments import add_machine_arguments, add_model_argument
from tar3d.runtime.progress import extraction_bar

__all__ = [
    "COMPUTE_DTYPES",
    "PRECISIONS",
    "add_device_arguments",
    "add_machine_arguments",
    "add_model_argument",
    "choose_device",
    "command_line",
    "commit",
    "describe_machine",
    "deterministic",
    "extraction_bar",
    "peak_memory",
    "peak_resident_bytes",
    "positive_int",
    "prepare_blocks",
    "repeated_blocks",
    "resolve_precision",
    "shard_blocks",
    "start_fabric",
    "uncompiled",
]
