"""Trainings in processes of their own, small enough for a step to take milliseconds."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fork_server import Process, fork
from run_files import equal, rows

from tar3d.training.state import load_state, newest_state

ROOT = Path(__file__).resolve().parents[2]
STEPS = 120
TRAIN = [
    "train.precision=32-true",
    "train.num_workers=1",
    "train.save_every=10",
    "train.log_every=1",
    "train.validation_shapes=1",
    "train.preview_shapes=0",
    "train.validate_every=50",
    "optim.warmup_steps=1",
    "train.ema=0.9",
]
VQVAE = [
    "tokenizer.grid_size=4",
    "tokenizer.width=16",
    "tokenizer.num_heads=2",
    "tokenizer.num_frequencies=3",
    "tokenizer.encoder=plane_pool",
    "tokenizer.encoder_layers=1",
    "tokenizer.point_width=8",
    "tokenizer.codebook_size=16",
    "tokenizer.code_dim=4",
    "tokenizer.decoder_layers=1",
    "tokenizer.plane_channels=4",
    "tokenizer.upsample_stages=1",
    "tokenizer.occupancy_width=8",
    "tokenizer.occupancy_layers=2",
    "train.batch_size=2",
    "train.surface_points=128",
    "train.volume_points=64",
    "train.near_points=32",
    f"train.autoencoder_steps={STEPS // 2}",
    f"train.codebook_steps={STEPS // 2}",
    *TRAIN,
]
GPT = [
    "gpt.num_layers=2",
    "gpt.width=16",
    "gpt.num_heads=2",
    "gpt.condition_tokens=16",
    "gpt.condition_width=16",
    "gpt.grid_size=4",
    "gpt.codebook_size=16",
    "gpt.layer_pattern=LF",
    "image_encoder.model=trained",
    "image_encoder.image_size=32",
    "image_encoder.patch_size=8",
    "image_encoder.width=16",
    "image_encoder.num_layers=1",
    "image_encoder.num_heads=2",
    f"train.steps={STEPS}",
    "train.global_batch_size=4",
    "gpt.condition_dropout=0.3",
    *TRAIN,
]


def fork_ranks(command: list[str], processes: int) -> list[Process]:
    """A job of several processes, each with the environment that torchrun would give it."""
    common = as_torchrun_sets(processes)
    ranks = ({"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(processes))
    return [fork(command, **common, **rank) for rank in ranks]


def finish(command: list[str], processes: int = 1) -> str:
    """What the first process of a training printed, once all have ended well."""
    job = [fork(command)] if processes == 1 else fork_ranks(command, processes)
    with ThreadPoolExecutor(processes) as pool:
        outputs = [output for output, _ in pool.map(Process.communicate, job)]
    for process, output in zip(job, outputs, strict=True):
        assert process.returncode == 0, output[-2000:]
    return outputs[0]


def as_torchrun_sets(processes: int) -> dict[str, str]:
    """The environment of a job on this machine, apart from what each process has of its own."""
    count = str(processes)
    return {
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "TORCHELASTIC_RUN_ID": "none",
    }


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for_step(process: Process, out: Path, step: int = 1) -> None:
    deadline = time.monotonic() + 90
    while (
        not (out / "train.csv").is_file()
        or len((out / "train.csv").read_text().splitlines()) <= step
    ):
        assert process.poll() is None, process.communicate()[0][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_the_same_run(out: Path, whole: Path) -> bool:
    """Whether two runs have the same curves and last state, whatever else identifies them."""
    states = [load_state(newest_state(run / "states")[0]) for run in (out, whole)]
    for state in states:
        state.pop("identity")
    return (
        equal(*states)
        and rows(out / "train.csv") == rows(whole / "train.csv")
        and rows(out / "validation.csv") == rows(whole / "validation.csv")
    )
