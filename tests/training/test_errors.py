"""What happens to machines happens to a training here, in a process of its own: it is told to stop,
killed, its disk is full, its workers die. Each time one sentence, and no step lost but those since
the last save."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fork_server import fork
from run_files import rows
from trainings import finish, is_the_same_run, wait_for_step

from tar3d.training.errors import print_error
from tar3d.training.state import SaveError, newest_state, saved_steps


@pytest.mark.parametrize(
    "name, signum, whole_group",
    [
        ("vqvae", signal.SIGTERM, True),  # as Slurm sends it: to every process of the job
        ("vqvae", signal.SIGINT, True),  # as a terminal does
        ("gpt", signal.SIGUSR1, False),
    ],
)
def test_told_to_stop_it_saves_and_goes_on_later_as_if_nothing_had_been(
    commands, tmp_path, name, signum, whole_group
):
    out = tmp_path / "run"
    process = fork([*commands[name], "--out", str(out), "--resume", "auto"])
    wait_for_step(process, out, 13)
    (os.killpg if whole_group else os.kill)(process.pid, signum)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signum, output[-2000:]
    stopped = int(
        re.search(
            rf"stopped by {signal.Signals(signum).name} after step (\d+); the state is saved",
            output,
        )[1]
    )
    assert saved_steps(out / "states")[-1] == stopped == int(rows(out / "train.csv")[-1]["step"])
    assert "Traceback" not in output and "starts from the beginning" in output
    assert f"continues from {out}" in finish(
        [*commands[name], "--out", str(out), "--resume", "auto"]
    )
    assert is_the_same_run(out, commands["whole"] / name)


def test_a_second_interrupt_stops_at_once(commands, tmp_path):
    """It waits for nothing: neither for a worker, which ignores SIGTERM, nor for a lock."""
    out = tmp_path / "run"
    process = fork(
        [
            *commands["vqvae"],
            "--out",
            str(out),
            "train.validate_every=1",
            "train.validation_shapes=1",
        ]
    )
    wait_for_step(process, out)
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.002)
    assert process.communicate(timeout=20)[0] and process.returncode != 0


def killed_again_and_again(command: list[str], out: Path, times: int, rng: random.Random) -> int:
    """Kills a run at random moments, resuming it each time, then lets it finish; returns the most
    steps that a kill cost."""
    worst = 0
    for _ in range(times):
        process = fork([*command, "--out", str(out), "--resume", "auto"])
        if rng.random() < 0.8:  # else somewhere in its start
            wait_for_step(process, out)
        time.sleep(rng.random() * 2.0)
        done = (
            rows(out / "train.csv")[-1]["step"]
            if (out / "train.csv").is_file() and rows(out / "train.csv")
            else 0
        )
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kept = saved_steps(out / "states")
        worst = max(worst, int(done or 0) - (kept[-1] if kept else 0))
    finish([*command, "--out", str(out), "--resume", "auto"])
    return worst


@pytest.mark.parametrize("name", ["vqvae", "gpt"])
def test_killed_at_random_it_loses_the_steps_since_the_last_save_and_nothing_else(
    commands, tmp_path, name
):
    worst = killed_again_and_again(commands[name], tmp_path / "run", 3, random.Random(name))
    assert worst <= 10 + 1 and is_the_same_run(tmp_path / "run", commands["whole"] / name)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["vqvae", "gpt"])
@pytest.mark.parametrize("chain", range(5))
def test_killed_fifty_times(commands, tmp_path, name, chain):
    worst = killed_again_and_again(
        commands[name], tmp_path / "run", 5, random.Random(f"{name} {chain}")
    )
    assert worst <= 10 + 1 and is_the_same_run(tmp_path / "run", commands["whole"] / name)


def test_a_damaged_state_is_passed_over(commands, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(commands["whole"] / "vqvae", out)
    newest = newest_state(out / "states")[0]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    output = finish([*commands["vqvae"], "--out", str(out), "--resume", "auto"])
    assert f"passed over: {newest} is damaged" in output and is_the_same_run(
        out, commands["whole"] / "vqvae"
    )


def test_a_worker_that_dies_is_one_sentence(commands, tmp_path):
    out = tmp_path / "run"
    process = fork([*commands["vqvae"], "--out", str(out)])
    wait_for_step(process, out, 12)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    output = process.communicate(timeout=60)[0]
    assert (
        process.returncode == 2
        and "a process that reads data died" in output
        and "Traceback" not in output
    )
    finish([*commands["vqvae"], "--out", str(out), "--resume", "auto"])
    assert is_the_same_run(out, commands["whole"] / "vqvae")


def test_a_full_disk_in_the_middle_of_a_run_is_one_sentence(commands, tmp_path):
    """No file may grow beyond what a log needs: states cannot be written."""
    out = tmp_path / "run"
    limited = (
        "import resource, signal, sys, runpy; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); sys.argv = sys.argv[1:]; "
        "sys.path.insert(0, '.'); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    process = fork(["-c", limited, *commands["vqvae"], "--out", str(out)])
    output = process.communicate(timeout=90)[0]
    assert (
        process.returncode == 2 and "could not be written" in output and "Free space" in output
    ), output[-2000:]
    assert "Traceback" not in output and not saved_steps(out / "states")


def test_damaged_samples_are_named(commands, data, tmp_path):
    broken = tmp_path / "set"
    shutil.copytree(data, broken)
    for path in (broken / "samples").glob("*.npz"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    command = [str(broken) if word == str(data) else word for word in commands["vqvae"]]
    process = fork([*command, "--out", str(tmp_path / "run")])
    output = process.communicate(timeout=90)[0]
    assert process.returncode == 2 and ".npz" in output and "not a readable sample file" in output


@pytest.mark.parametrize(
    "error, expected",
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "the GPU ran out of memory .*micro_batch_size",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: "
                "you tried to allocate 9."
            ),
            "this machine ran out of memory",
        ),
        (MemoryError(), "this machine ran out of memory"),
        (
            RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
            "a process that reads data died .* train.num_workers=0",
        ),
        (
            OSError(28, "No space left on device", "run/train.csv"),
            "run/train.csv could not be written .* Free space",
        ),
        (
            RuntimeError(
                "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:9"
            ),
            "lost another process of",
        ),
        (SaveError("the training state of step 3 could not be written"), "step 3"),
        (ValueError("lr is -1"), "lr is -1"),
    ],
)
def test_expected_faults_are_one_sentence_and_a_status(error, expected, capsys):
    assert print_error(error) == 2
    message = capsys.readouterr().err
    assert re.match(f".*{expected}", message) and message.count("\n") == 1


def test_a_mistake_in_the_program_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="size mismatch"):
        print_error(RuntimeError("size mismatch"))


BROKEN_ITEM = """
from torch.utils.data import Dataset
from tar3d.runtime import start_fabric
from tar3d.training.loader import training_loader

class Broken(Dataset):
    def __getitem__(self, item):
        raise ValueError("a broken item")

batches = iter(training_loader(Broken(), [[0], [1]], 1, start_fabric(None, 1, "32-true")))
next(batches)
"""


def test_a_failed_training_ends_although_its_workers_ignore_signals():
    """Python waits for workers at its exit, after a SIGTERM that these ignore."""
    done = subprocess.run(
        [sys.executable, "-c", BROKEN_ITEM],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1 and "a broken item" in done.stderr
