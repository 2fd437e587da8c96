"""Under float16 a step whose gradients overflow moves nothing, and the loss scale recovers."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from run_files import equal
from torch import nn
from trainings import finish

from tar3d import config as configuration
from tar3d.config import VQVAEConfig
from tar3d.optim.groups import new_optimizers
from tar3d.runtime import start_fabric
from tar3d.training.errors import NotFinite
from tar3d.training.run import Run
from tar3d.training.sharding import gathered

INF, NAN = math.inf, math.nan


class Net(nn.Module):
    """One matrix for Muon, vectors for AdamW."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.norm = nn.Linear(4, 4, bias=False), nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.matrix(x)).float().square().mean()


class Order:
    def of_step(self, step: int) -> list[tuple[int, int]]:
        return [(step, 0)]


def new_run(folder: Path, *overrides: str, shard: bool = False) -> Run[Net]:
    config = configuration.load(
        VQVAEConfig, None, ["train.precision=16-mixed", "train.ema=0.9", *overrides]
    )
    torch.manual_seed(0)
    fabric = start_fabric(None, 1, "16-mixed", shard=shard)
    run = Run("net", folder, fabric, Net(), config, generators={}, shard=shard)
    run.optimizers = new_optimizers(run.module, config.optim)
    assert len(run.optimizers) == 2
    return run


def step(run: Run[Net], factors: tuple[float, ...] = (1.0, 1.0)) -> dict[str, float]:
    """One step of two passes whose losses are multiplied by `factors`."""
    world, rank = run.fabric.world_size, run.fabric.global_rank
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(run.step)).chunk(world)[rank]
    for part, factor in zip(run.micro_batches(len(x)), factors, strict=True):
        loss = run.model(x[part])
        run.backward(factor * loss, {"loss": loss})
    values = run.step_values(run.clip_gradients())
    if run.check_finite(values):
        run.optimizer_step()
        run.update_average()
    run.finish_step(values)
    return values


def what_moves(run: Run[Net]) -> dict:
    moving = {
        "weights": run.module.state_dict(),
        "average": run._average.state_dict(),
        "optimizers": [o.state_dict()["state"] for o in run.optimizers],
    }
    return copy.deepcopy(gathered(moving) if run._sharded else moving)


def session(run: Run[Net]):
    return run.session(Order(), str, unit="rows", items=4, flops=1.0)


@pytest.mark.parametrize("poisoned", [("matrix",), ("norm",), ("matrix", "norm")])
@pytest.mark.parametrize("value", [INF, NAN])
@pytest.mark.parametrize("bad_pass", [0, 1])
def test_an_overflow_anywhere_moves_nothing(tmp_path, poisoned, value, bad_pass):
    """In the gradients of either optimizer or of both, and in either pass of a step."""
    run = new_run(tmp_path, "train.micro_batch_size=2")
    with session(run):
        step(run)
        before, scale, passes = what_moves(run), run._scaler.get_scale(), []

        def poison(gradient: torch.Tensor) -> torch.Tensor:
            passes.append(1)
            bad = (len(passes) - 1) // len(poisoned) == bad_pass
            return gradient + value if bad else gradient

        hooks = [getattr(run.module, name).weight.register_hook(poison) for name in poisoned]
        assert not math.isfinite(step(run)["gradient_norm"])
        assert equal(what_moves(run), before)
        assert (run._scaler.get_scale(), run.step, run.skipped) == (scale / 2, 2, 0)
        for hook in hooks:
            hook.remove()
        step(run)
        after = what_moves(run)
        assert not equal(after, before) and run._scaler.get_scale() == scale / 2
        for tensor in (*after["weights"].values(), *after["average"].values()):
            assert tensor.isfinite().all()


def scale_falls(run: Run[Net]) -> tuple[list[bool], float]:
    """Whether each of a few steps of an enormous loss moved the weights; the scale after them."""
    moved = []
    with session(run):
        for _ in range(12):
            before = what_moves(run)
            step(run, (1e3, 1e3))
            moved.append(not equal(what_moves(run), before))
    return moved, run._scaler.get_scale()


def test_the_scale_falls_until_gradients_fit(tmp_path):
    moved, scale = scale_falls(new_run(tmp_path, "train.micro_batch_size=2"))
    first = moved.index(True)
    assert 2 < first < 11 and all(moved[first:]) and scale == 65536 / 2**first


def test_gradients_that_no_scale_makes_finite_end_the_run(tmp_path):
    run = new_run(tmp_path, "train.micro_batch_size=2")
    with session(run):
        before = what_moves(run)
        run.module.matrix.weight.register_hook(lambda g: g * INF)
        for _ in range(17):  # 65,536 is 2^16
            step(run)
        with pytest.raises(NotFinite):
            step(run)
        assert equal(what_moves(run), before)


def test_a_norm_that_no_scale_makes_finite_ends_the_run(tmp_path):
    """Each gradient is finite, their norm is not."""
    run = new_run(tmp_path, "train.micro_batch_size=2")
    with session(run):
        before = what_moves(run)
        run.module.norm.weight.register_hook(lambda g: torch.full_like(g, 1e30))
        with pytest.raises(NotFinite):
            step(run)
        assert equal(what_moves(run), before)


def test_the_record_of_a_bad_step_names_the_gradients_at_fault(tmp_path):
    run = new_run(tmp_path, "train.micro_batch_size=2", "train.precision=32-true")
    with session(run):
        run.module.norm.bias.register_hook(lambda g: g * NAN)
        with pytest.raises(NotFinite):
            step(run)
    record = next((tmp_path / "nonfinite").glob("*.json")).read_text()
    assert '"norm.bias"' in record and "matrix" not in record


def one_process() -> None:
    """One of the processes of the test below."""
    run = new_run(Path(sys.argv[1]), "train.micro_batch_size=1", shard=bool(sys.argv[2]))
    result = scale_falls(run)
    if run.fabric.is_global_zero:
        print(json.dumps(result))


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp"])
def test_processes_agree_on_the_steps_that_overflow(tmp_path, shard):
    alone = scale_falls(new_run(tmp_path, "train.micro_batch_size=2"))
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_overflow as t; t.one_process()"
    output = finish(["-c", code, str(tmp_path / "two"), "shard" if shard else ""], 2)
    assert json.loads(output.splitlines()[-1]) == list(alone)
