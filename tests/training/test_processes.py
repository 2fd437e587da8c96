"""Two processes that share a batch train as one does: both trainings, Muon, codebook and all; and
either goes on from the other's state. They talk over gloo, on the CPU."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from fork_server import fork
from run_files import rows
from trainings import finish, fork_ranks, free_port, wait_for_step

from tar3d.training.state import load_state, newest_state

TOLD = [
    "--gpt-type",
    "any",
    "text_encoder.model=trained",
    "text_encoder.max_tokens=8",
    "text_encoder.vocabulary=16",
    "text_encoder.width=16",
    "text_encoder.num_layers=1",
    "text_encoder.num_heads=2",
    "train.word_dropout=0.2",
]
FEW = {
    "vqvae": ["train.batch_size=4", "train.autoencoder_steps=6", "train.codebook_steps=6"],
    "gpt": [
        *TOLD,
        "train.steps=12",
        "train.micro_batch_size=2",
        "gpt.code_predictor_dim=4",
        "gpt.code_predictor_local=3",
        "train.code_predictor_weight=1",
        "train.code_predictor_rows=8",
    ],
}


def torchrun(command: list[str]) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *command]


@pytest.mark.parametrize("name", ["vqvae", "gpt"])
def test_two_processes_train_as_one_and_resume_each_other(commands, tmp_path, name):
    one, two = tmp_path / "one", tmp_path / "two"
    command = [*commands[name], *FEW[name], "train.save_every=3"]
    finish([*command, "--out", str(one)])
    finish([*command, "--out", str(two)], 2)
    log = [rows(folder / "train.csv") for folder in (one, two)]
    assert len(log[0]) == 12
    columns = (
        ["loss", "volume", "near", "commitment"] if name == "vqvae" else ["nll", "code_distance"]
    )
    for mine, theirs in zip(*log, strict=True):
        for column in (*columns, "gradient_norm"):
            assert float(mine[column]) == pytest.approx(
                float(theirs[column]), rel=2e-3, abs=1e-5
            ), (mine["step"], column)
    models = [load_state(newest_state(folder / "states")[0])["model"] for folder in (one, two)]
    for key, tensor in models[0].items():
        assert torch.allclose(tensor, models[1][key], rtol=1e-2, atol=2e-3), key

    middle = newest_state(one / "states")[0].with_stem("00000009")  # of N processes, on M
    for source, processes in ((one, 2), (two, 1)):
        out = tmp_path / f"{source.name}_resumed"
        shutil.copytree(source, out)
        resume = ["--out", str(out), "--resume", str(source / "states" / middle.name)]
        finish([*command, *resume], processes)
        resumed = rows(out / "train.csv")
        assert [row["step"] for row in resumed] == [str(k) for k in range(1, 13)]
        for mine, theirs in zip(resumed[9:], log[0][9:], strict=True):
            assert float(mine[columns[0]]) == pytest.approx(float(theirs[columns[0]]), rel=2e-3)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_processes_that_share_the_weights_train_as_one(commands, tmp_path, ema):
    """FSDP2: each holds a part of weights and states, and what it saves one process alone can go on
    from, and back."""
    one, two = tmp_path / "one", tmp_path / "two"
    command = [*commands["gpt"], *FEW["gpt"], "train.save_every=6", f"train.ema={ema}"]
    sharded = [*command, "train.strategy=fsdp"]
    finish([*command, "--out", str(one)])
    output = finish([*sharded, "--out", str(two)], 2)
    log = [rows(folder / "train.csv") for folder in (one, two)]
    for mine, theirs in zip(*log, strict=True):
        for column in ("nll", "code_distance", "gradient_norm"):
            assert float(mine[column]) == pytest.approx(
                float(theirs[column]), rel=2e-3, abs=1e-5
            ), (mine["step"], column)
    assert last_nll(two) == pytest.approx(last_nll(one), rel=2e-3)
    states = [load_state(newest_state(folder / "states")[0]) for folder in (one, two)]
    for part in ("model", "averaged")[: 2 if ema else 1]:
        for key, tensor in states[0][part].items():
            assert torch.allclose(tensor, states[1][part][key], rtol=1e-2, atol=2e-3), (part, key)
    for source, training, processes in ((one, sharded, 2), (two, command, 1)):
        out = tmp_path / f"{source.name}_resumed"
        shutil.copytree(source, out)
        resume = ["--out", str(out), "--resume", str(source / "states" / "00000006.pt")]
        finish([*training, *resume], processes)
        for mine, theirs in zip(rows(out / "train.csv"), log[0], strict=True):
            assert float(mine["nll"]) == pytest.approx(float(theirs["nll"]), rel=2e-3)
    held, whole = (
        int(n.replace(",", ""))
        for n in re.search(r"holds ([\d,]+) of ([\d,]+) parameters", output).groups()
    )
    assert 0.45 * whole < held < 0.55 * whole


def last_nll(run: Path) -> float:
    return float(rows(run / "validation.csv")[-1]["nll"])


def test_a_rank_that_dies_ends_the_job(commands, tmp_path):
    out = tmp_path / "run"
    process = fork(torchrun([*commands["gpt"], "--out", str(out)]))
    wait_for_step(process, out, 12)
    ranks = [
        int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    os.kill(ranks[-1], signal.SIGKILL)
    output = process.communicate(timeout=60)[0]
    assert process.returncode != 0 and re.search(
        r"process 0 lost another process of this job|Signal 9", output
    ), output[-3000:]
    finish([*commands["gpt"], "--out", str(out), "--resume", "auto"])


def test_two_machines_meet_by_torchruns_rendezvous(commands, tmp_path):
    """Two launchers on this one, which know of each other what two machines would."""
    one, two = tmp_path / "one", tmp_path / "two"
    command = [*commands["vqvae"], *FEW["vqvae"]]
    finish([*command, "--out", str(one)])
    meet = [
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc_per_node=1",
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint=127.0.0.1:{free_port()}",
        "--local_addr=127.0.0.1",
    ]
    nodes = [fork([*meet, *command, "--num_nodes", "2", "--out", str(two)]) for _ in range(2)]
    outputs = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs[0][-2000:] + outputs[1][-2000:]
    for mine, theirs in zip(*(rows(folder / "train.csv") for folder in (one, two)), strict=True):
        assert float(mine["loss"]) == pytest.approx(float(theirs["loss"]), rel=2e-3)


def test_told_to_stop_all_processes_stop_after_the_same_step(commands, tmp_path):
    """Each is told on its own, as torchrun does it: the first a moment before the other."""
    out = tmp_path / "run"
    job = fork_ranks([*commands["vqvae"], "--out", str(out)], 2)
    wait_for_step(job[0], out, 12)
    for process in job:
        os.kill(process.pid, signal.SIGTERM)
    outputs = [process.communicate(timeout=60)[0] for process in job]
    assert all(process.returncode != 0 for process in job), outputs
    stopped = {
        int(step) for step in re.findall(r"stopped by SIGTERM after step (\d+)", "".join(outputs))
    }
    assert len(stopped) == 1 and newest_state(out / "states")[0].stem == f"{stopped.pop():08d}", (
        outputs[0][-3000:]
    )
