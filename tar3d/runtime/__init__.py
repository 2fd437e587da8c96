"""How code runs: commands, devices and processes, blocks of a model, the machine, progress.

Nothing here loads torch before it is called: a command parses its arguments without it.
"""

from tar3d.runtime.arguments import (
    PRECISIONS,
    add_device_arguments,
    cell_count,
    command_parser,
    positive_int,
)
from tar3d.runtime.blocks import prepare_blocks, repeated_blocks, shard_blocks, uncompiled
from tar3d.runtime.command import command
from tar3d.runtime.devices import (
    choose_device,
    compute_dtype,
    deterministic,
    inference_precision,
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
from tar3d.runtime.model_arguments import (
    add_encoder_arguments,
    add_machine_arguments,
    add_model_argument,
    encoder_folders,
    model_source,
)
from tar3d.runtime.progress import extraction_bar, print_line, progress_bar

__all__ = [
    "PRECISIONS",
    "add_device_arguments",
    "add_encoder_arguments",
    "add_machine_arguments",
    "add_model_argument",
    "cell_count",
    "choose_device",
    "command",
    "command_line",
    "command_parser",
    "commit",
    "compute_dtype",
    "describe_machine",
    "deterministic",
    "encoder_folders",
    "extraction_bar",
    "inference_precision",
    "model_source",
    "peak_memory",
    "peak_resident_bytes",
    "positive_int",
    "prepare_blocks",
    "print_line",
    "progress_bar",
    "repeated_blocks",
    "resolve_precision",
    "shard_blocks",
    "start_fabric",
    "uncompiled",
]
