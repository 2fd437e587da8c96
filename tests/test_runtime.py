"""Devices, precision, and what a figure needs beside it."""

import argparse
import copy
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tar3d import runtime
from tar3d.runtime import (
    add_device_arguments,
    choose_device,
    deterministic,
    inference_precision,
    prepare_blocks,
    resolve_precision,
    start_fabric,
    unusable_gpu,
)

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="speaks about a machine without GPUs")


@NO_GPU
def test_gpus_that_are_not_there_are_refused_with_a_remedy():
    with pytest.raises(
        ValueError,
        match="asks for GPU 0,1, which this machine does not have; it has none: leave --gpus out",
    ):
        start_fabric("0,1", 1, "32-true")


def test_the_gpus_that_are_there_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="asks for GPU 3, .* it has GPU 0,1: write --gpus 0,1"):
        start_fabric("1,3", 1, "32-true")


@pytest.mark.parametrize("text", ["", ",", "a", "0,0", "-1", "0;1", "1.5"])
def test_device_lists_that_make_no_sense_are_refused(text):
    with pytest.raises(ValueError, match="--gpus takes"):
        start_fabric(text, 1, "32-true")


def test_unknown_precision_and_lonely_nodes_are_refused(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with pytest.raises(
        ValueError, match="precision is '8-mixed', allowed are auto, 32-true, bf16-mixed, 16-mixed"
    ):
        start_fabric(None, 1, "8-mixed")
    for nodes in (0, 2):
        with pytest.raises(ValueError, match=f"--num_nodes {nodes}.*torchrun"):
            start_fabric(None, nodes, "32-true")


@NO_GPU
def test_one_process_on_the_cpu_by_default():
    fabric = start_fabric(None, 1, "32-true")
    assert (fabric.world_size, fabric.device.type) == (1, "cpu") and fabric.is_global_zero


def test_precision_follows_the_hardware(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert (
        resolve_precision("auto", "cpu") == "bf16-mixed"
        and resolve_precision("32-true", "cpu") == "32-true"
    )
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert (
        resolve_precision("auto", "cpu") == "32-true"
        and resolve_precision("bf16-mixed", "cpu") == "bf16-mixed"
    )


@pytest.mark.parametrize(
    "device, capability, found",
    [
        ("cuda:1", (8, 0), "bf16-mixed"),
        ("cuda:1", (12, 0), "bf16-mixed"),
        ("cuda:1", (7, 5), "32-true"),
        ("cpu", (9, 0), "32-true"),
        ("mps", (9, 0), "32-true"),
    ],
)
def test_auto_is_bfloat16_for_a_trained_model_on_a_gpu_that_has_it(
    monkeypatch, device, capability, found
):
    """A CPU with bfloat16, which trainings use, gives a trained model's results in float32."""
    asked = []
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability
    )
    device = torch.device(device)
    assert inference_precision("auto", device) == found
    assert inference_precision("16-mixed", device) == "16-mixed"
    assert asked == [device] * (device.type == "cuda")  # not the current one
    with pytest.raises(ValueError, match="precision is 'bf16', allowed are auto, 32-true, bf16-"):
        inference_precision("bf16", device)


@pytest.mark.parametrize(
    "name, message",
    [
        ("gpu", "write cpu, cuda, cuda:N or mps"),
        ("xla", "runs on cpu, cuda and mps"),
        ("cuda:99", "write --device cpu"),
    ],
)
def test_devices_that_cannot_be_used_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        choose_device(name)


def test_device_by_default():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build"


@pytest.mark.parametrize(
    "cuda, driver, reason",
    [
        (None, "580.82.07", "it is a build without CUDA.*install a CUDA build"),
        ("13.0", "535.183.01", "the driver is 535, and CUDA 13.0 needs 580 or later"),
        ("13.0", "580.82.07", "CUDA_VISIBLE_DEVICES"),
    ],
)
@NO_GPU
def test_a_gpu_that_torch_cannot_use_is_told_with_the_remedy(
    monkeypatch, tmp_path, cuda, driver, reason
):
    monkeypatch.setattr(unusable_gpu, "DRIVER_FILE", tmp_path / "version")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert unusable_gpu.unusable_gpu() == ""
    (tmp_path / "version").write_text(DRIVER.format(driver))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    for start in (partial(choose_device, None), partial(start_fabric, None, 1, "32-true")):
        with pytest.warns(UserWarning, match=f"{reason}.*This runs on the CPU"):
            start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_device("cpu")


def test_mps_is_tried_with_a_warning(monkeypatch):
    with pytest.raises(ValueError, match="no MPS"):
        choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.warns(UserWarning, match="not been tried on MPS"):
        assert choose_device("mps").type == "mps"


def test_the_chosen_gpu_is_the_current_one(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert current == [torch.device("cuda:1")]


def test_device_flags():
    parser = argparse.ArgumentParser()
    add_device_arguments(parser)
    args = parser.parse_args(["--gpus", "0,1", "--num_nodes", "2"])
    assert (args.gpus, args.num_nodes) == ("0,1", 2)


def test_a_measurement_can_say_where_it_was_made(tmp_path):
    found = runtime.describe_machine(torch.device("cpu"))
    assert set(found) == {"machine", "torch", "python", "commit"} and all(found.values())
    assert "GiB" in runtime.peak_memory(torch.device("cpu"))


@NO_GPU
def test_cublas_is_deterministic_from_the_first_product_on(monkeypatch):
    """It reads its variable once, at its first call: before tokens are made, say."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    start_fabric(None, 1, "32-true")
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    start_fabric(None, 1, "32-true", deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_deterministic_within_and_as_before_after(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    enabled = torch.are_deterministic_algorithms_enabled
    with pytest.raises(KeyError), deterministic():  # noqa: PT012 (the block is the subject)
        assert (
            enabled()
            and not torch.backends.cudnn.benchmark
            and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        )
        with deterministic(False):
            assert not enabled()
        assert enabled()
        raise KeyError
    assert not enabled() and torch.backends.cudnn.benchmark


class Twice(torch.nn.Module):
    """Two blocks of two products and something elementwise between them."""

    def __init__(self) -> None:
        super().__init__()
        layers = (
            torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU(), torch.nn.Linear(4, 4))
            for _ in range(2)
        )
        self.blocks = torch.nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Counted(TorchDispatchMode):
    """How often each operation ran."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket._qualified_op_name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "activation_checkpointing, products, elementwise",
    [("none", 4, 2), ("cheap", 4, 4), ("blocks", 6, 4)],
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_recomputing_changes_what_is_kept_and_no_number(
    activation_checkpointing, products, elementwise, device
):
    """The second product of a block need not be run again: its gradient asks for its inputs
    alone."""
    torch.manual_seed(0)
    plain = Twice().to(device)
    other = copy.deepcopy(plain)
    prepare_blocks(other, activation_checkpointing, compile=False)
    x = torch.randn(3, 4, device=device)
    plain(x).square().sum().backward()
    with Counted() as ran:
        other(x).square().sum().backward()
    assert (ran.counts["addmm"], ran.counts["gelu"]) == (products, elementwise)
    assert plain.state_dict().keys() == other.state_dict().keys()
    for mine, theirs in zip(other.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    with Counted() as ran, torch.no_grad():
        assert torch.equal(other(x), plain(x))
    assert ran.counts["addmm"] == 8, "without gradients there is nothing to recompute"


class Dtypes(torch.nn.Module):
    """Notes what it is given and what a matrix product makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.seen = torch.nn.Linear(3, 1), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        self.seen += [x.dtype, y.dtype]
        return y


@pytest.mark.parametrize(
    "precision, product",
    [("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16), ("32-true", torch.float32)],
)
def test_inputs_of_a_training_step_are_not_rounded(precision, product):
    """Coordinates in bfloat16 would be off by up to 1/256, a quarter of a cell of 128^3; their
    labels would be wrong."""
    model = Dtypes()
    wrapped = start_fabric(None, 1, precision).setup(model)
    wrapped(torch.rand(2, 3))
    assert model.seen == [torch.float32, product]


def test_the_command_is_recorded_as_one_would_type_it(tmp_path):
    package = tmp_path / "tools"
    package.mkdir()
    code = "from tar3d.runtime import command_line\nprint(command_line())\n"
    for path in (
        tmp_path / "script.py",
        package / "__init__.py",
        package / "__main__.py",
        package / "part.py",
    ):
        path.write_text("" if path.stem == "__init__" else code)
    root = Path(runtime.__file__).resolve().parents[2]
    for started in (["script.py"], ["-m", "tools"], ["-m", "tools.part"]):
        result = subprocess.run(
            [sys.executable, *started, "--name", "two words"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(root)},
        )
        assert result.stdout == f"python {' '.join(started)} --name 'two words'\n"


def test_an_installed_package_does_not_take_the_commit_of_the_checkout_around_it(
    tmp_path, monkeypatch
):
    from tar3d.runtime import machine

    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setattr(machine, "PACKAGE", tmp_path / "venv" / "tar3d")
    assert machine.commit() == "unknown"
