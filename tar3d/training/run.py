"""A training run around its steps: optimizers and schedule, averaged weights, saving and resuming,
logs, stopping when asked.

The loops stay in the scripts:

    run = Run("tokenizer", out, fabric, module, config, generators={...})
    run.restore(state)
    for batch in run.batches(loader, order, names, unit="shapes", items=16, flops=1e9):
        for rows in run.parts(16):
            run.backward(loss, {"loss": loss})
        values = run.move()
        run.advance(values)
        if run.due(config.train.validate_every):
            with run.aside():
                ...
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from tar3d import config as configuration
from tar3d.optim.groups import build_optimizers, routing_table
from tar3d.optim.schedule import learning_rate_factor, set_learning_rates
from tar3d.runtime import (
    COMPUTE_DTYPES,
    command_line,
    describe_machine,
    deterministic,
    peak_memory,
    prepare_blocks,
    resolve_precision,
)
from tar3d.throughput import Meter, find_peak
from tar3d.training.faults import NotFinite, Stopped, catch_signals
from tar3d.training.log import RunLog
from tar3d.training.state import (
    STATES,
    check_state,
    gathered,
    load_module,
    load_state,
    newest_state,
    restore,
    save_state,
    saved_steps,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lightning_fabric import Fabric

    from tar3d.config import GPTRunConfig, VQVAEConfig
    from tar3d.data.datasets.sampler import JoinedOrder, TrainingOrder

T = TypeVar("T")
AUTO = "auto"
NOT_FINITE = "nonfinite"  # folder of a run: states from before steps that were not finite
# of the loss under float16: where gradients overflow even so, the run has diverged
SMALLEST_SCALE = 1.0
NAMED = 20  # items and parameters that a message lists


def prepare_folder(fabric: Fabric, folder: Path, resume: str | None, config: object) -> Path | None:
    """Makes the run folder, writes run.json, and returns the state to go on from, if any, to every
    process. The first process has checked it: the others need not read it for that.

    `resume` is "auto" (the newest good state, if there is any) or a state's file. Raises ValueError
    rather than to write a new run over an old one, or to go on from a state that is damaged or not
    there.
    """
    found = None
    if fabric.is_global_zero:
        states = folder / STATES
        if resume == AUTO:
            found, passed = newest_state(states)
            for sentence in passed:
                print(f"passed over: {sentence}", flush=True)
            print(
                f"continues from {found}"
                if found
                else f"no state in {states}: starts from the beginning",
                flush=True,
            )
        elif resume is not None:
            found = Path(resume)
            if not found.is_file():
                raise ValueError(
                    f"--resume {resume}: there is no such state; write --resume auto for the newest one in --out"
                )
            if found.with_suffix(".json").is_file():
                check_state(found)
        elif saved_steps(states):
            raise ValueError(
                f"{folder} already holds a run: continue it with --resume auto, or choose another --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        record = {"command": command_line(), "config": configuration.to_mapping(config)}
        (folder / "run.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return fabric.broadcast(found)


class Run:
    """One training, from its start or from a saved state to its last step.

    `module` is trained; `generators` are the random generators that the loop draws from, saved and
    restored with the rest. What data a step sees is a function of (seed, step). Every process of a
    job makes the same calls.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        fabric: Fabric,
        module: nn.Module,
        config: VQVAEConfig | GPTRunConfig,
        *,
        generators: dict[str, torch.Generator],
        wandb: str | None = None,
    ) -> None:
        self.name, self.folder, self.fabric, self.bare, self.config = (
            name,
            folder,
            fabric,
            module,
            config,
        )
        self.generators, self._wandb, self.total = generators, wandb, config.train.steps
        self.step, self.best, self.skipped, self._seconds = 0, -math.inf, 0, 0.0
        self.moved = True  # whether the last step moved the weights
        self._parts, self._values = 1, {}
        t = config.train
        fabric.print(routing_table(module, config.optim))
        # Copies are made before blocks are compiled and sharded.
        self._averaged = (
            AveragedModel(module, multi_avg_fn=_moving_average(t.ema)) if t.ema else None
        )
        self._sharded = getattr(t, "strategy", "ddp") == "fsdp" and fabric.world_size > 1
        self._whole = copy.deepcopy(module) if self._sharded and fabric.is_global_zero else None
        prepare_blocks(module, t.activation_checkpointing, t.compile)
        self.model = fabric.setup(module)
        self._optimizers = [o for o in build_optimizers(module, config.optim) if o is not None]
        if self._sharded:
            local, whole = (
                sum(count(p) for p in module.parameters()) for count in (_held, nn.Parameter.numel)
            )
            fabric.print(
                f"sharded: this process holds {local:,} of {whole:,} parameters, and of their gradients and states"
            )
        if self._averaged is not None and self._sharded:
            fabric.setup_module(self._averaged)
        elif self._averaged is not None:
            self._averaged.to(fabric.device)
        self._precision = resolve_precision(t.precision, fabric.device.type)
        self._scaler = torch.amp.GradScaler(
            fabric.device.type, enabled=self._precision == "16-mixed"
        )
        self.log: RunLog | None = None
        self._stop_agreed: Tensor | None = None

    def restore(self, path: Path | None) -> None:
        """Goes on from the file of a state that `prepare_folder` found good; nothing for None."""
        if path is None:
            return
        state = load_state(path)
        try:
            restore(state, self.bare, self._optimizers)
            self.step, self.best, self.skipped, self._seconds = (
                state[k] for k in ("step", "best", "skipped", "seconds")
            )
            self._scaler.load_state_dict(state["scaler"])
            for name, generator in self.generators.items():
                generator.set_state(state["generators"][name])
            if self._averaged is not None:
                load_module(self._averaged, state["averaged"])
        except KeyError as e:
            raise ValueError(
                f"{path} lacks {e}: it is a state of another kind of training, or of one without it (train.ema). "
                "Resume with the configuration the run was started with (run.json beside it)"
            ) from e

    def shown(self) -> nn.Module:
        """The module whose weights are validated, shown and kept: the moving average if there is
        one (`train.ema`). Where weights are sharded, a whole copy on the first process, and only
        there; every process has to call it."""
        module = self.bare if self._averaged is None else self._averaged.module
        if not self._sharded:
            return module
        weights = gathered(module.state_dict())
        if self._whole is None:
            return module
        self._whole.load_state_dict(weights)
        return self._whole.to(self.fabric.device)

    # the loop ------------------------------------------------------------------------------------------------------------

    def batches(
        self,
        loader: Iterable[T],
        order: TrainingOrder | JoinedOrder,
        name: Callable[[int], str],
        *,
        unit: str,
        items: int,
        flops: float,
    ) -> Iterator[T]:
        """The batches of the remaining steps. Between two of them the rate is set, the state saved
        when it is time, and the run stopped if a signal asked for it (`Stopped`). `items` (in
        `unit`s) and `flops` are those of a step on one device; `order` says which items a step has,
        and `name` what they are called."""
        with deterministic() if self.config.train.deterministic else contextlib.nullcontext():
            yield from self._batches(loader, order, name, unit, items, flops)

    def _batches(
        self,
        loader: Iterable[T],
        order: TrainingOrder | JoinedOrder,
        name: Callable[[int], str],
        unit: str,
        items: int,
        flops: float,
    ) -> Iterator[T]:
        self._items = lambda step: [name(index) for _, index in order.of_step(step)]
        first, device = self.step, self.fabric.device
        self.meter = Meter(
            first,
            self.total,
            items=items,
            unit=unit,
            flops=flops,
            peak=find_peak(device, COMPUTE_DTYPES[self._precision]),
        )
        self.fabric.print(
            f"{flops / 1e9:,.1f} model GFLOP a step and device; MFU is of {self.meter.peak.source}"
        )
        if self.fabric.is_global_zero:
            self.log = RunLog(
                self.folder, first, self._wandb, configuration.to_mapping(self.config)
            )
        self.bar = tqdm(
            total=self.total, initial=first, desc=self.name, disable=not self.fabric.is_global_zero
        )
        self._began = time.perf_counter() - self._seconds
        optim = self.config.optim
        with catch_signals() as received, contextlib.ExitStack() as cleanup:
            cleanup.callback(self.bar.close)
            cleanup.callback(lambda: self.log and self.log.close())
            for batch in self.meter.batches(loader):
                set_learning_rates(
                    self._optimizers, learning_rate_factor(self.step, self.total, optim)
                )
                yield batch
                stop = self._agree(max(received, default=0))
                if stop or self.step == self.total or self.step % self.config.train.save_every == 0:
                    with self.aside():
                        self.save(self.folder / STATES)
                if stop and self.step < self.total:
                    raise Stopped(stop, self.step, self.folder / STATES)

    def _agree(self, received: int) -> int:
        """The signal that any process had received when the step before began: all stop after the
        same step.

        What was sent a step ago has long arrived, so no process waits for it."""
        if self.fabric.world_size == 1:
            return received
        before = self._stop_agreed
        self._stop_agreed = torch.tensor(float(received), device=self.fabric.device)
        torch.distributed.all_reduce(self._stop_agreed, op=torch.distributed.ReduceOp.MAX)
        return 0 if before is None else int(before)

    def due(self, every: int) -> bool:
        """Whether something that is done every so many steps, and after the last one, is to be done
        now."""
        return self.step % every == 0 or self.step == self.total

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Time within it is not that of the training, nor need it be deterministic: it moves no
        weight. Processes leave it together."""
        self.meter.pause()
        with deterministic(False) if self.config.train.deterministic else contextlib.nullcontext():
            yield
        self.fabric.barrier()
        self.meter.resume()

    # a step --------------------------------------------------------------------------------------------------------------

    def parts(self, rows: int) -> Iterator[slice]:
        """The rows of a step on this device, `train.micro_batch_size` at a time; with the last part
        processes exchange gradients."""
        micro = self.config.train.micro_batch_size or rows
        if rows % micro:
            raise ValueError(
                f"train.micro_batch_size {micro} does not divide the {rows} rows of each device"
            )
        self._parts, self._values = rows // micro, {}
        for start in range(0, rows, micro):
            with self.fabric.no_backward_sync(self.model, enabled=start + micro < rows):
                yield slice(start, start + micro)

    def backward(self, loss: Tensor, values: dict[str, Tensor]) -> None:
        """Of the loss of a part, whose `values` (scalars) are averaged over the parts of the
        step."""
        self.fabric.backward(self._scaler.scale(loss / self._parts))
        for name, value in values.items():
            self._values[name] = self._values.get(name, 0.0) + value.detach().float() / self._parts

    def move(self) -> dict[str, float]:
        """Moves the weights by the gradients of a step, and returns its values as numbers, means
        over the processes, with the norm of the gradient before it was clipped and the rate.

        Raises NotFinite before the weights move where one of them is not finite, unless
        `train.skip_nonfinite` such steps may be passed over and this is one of them; `moved` is
        False then, and where float16 overflowed.
        """
        for optimizer in self._optimizers:
            self._scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(
            self.bare.parameters(), self.config.optim.grad_clip or math.inf
        )
        # The one place where the CPU waits for the device: before the optimizers move, and for all
        # numbers at once.
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        numbers = self.fabric.all_reduce(
            torch.stack([*self._values.values(), norm.float()]), reduce_op="mean"
        )
        values = dict(zip((*self._values, "gradient_norm"), numbers.tolist(), strict=True))
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        self.moved = not wrong
        overflowed = (
            wrong == ["gradient_norm"]
            and self._scaler.is_enabled()
            and self._scaler.get_scale() >= SMALLEST_SCALE
        )
        if self.moved or overflowed:
            for optimizer in self._optimizers:
                self._scaler.step(optimizer)  # does nothing where float16 overflowed
        else:
            self._pass_over(values, wrong[0])
        self._scaler.update()
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        return values | {"lr": self._optimizers[0].param_groups[0]["lr"], "skipped": self.skipped}

    def _pass_over(self, values: dict[str, float], wrong: str) -> None:
        """Writes down what is needed to repeat a step that is not finite; raises NotFinite if it is
        one too many."""
        items = self._items(self.step)
        parameters = [
            name
            for name, p in self.bare.named_parameters()
            if p.grad is not None and not p.grad.isfinite().all()
        ]
        about = {
            "values": {name: str(value) for name, value in values.items()},
            "items": items,
            "parameters_without_finite_gradient": parameters,
        }
        path = self.save(self.folder / NOT_FINITE, about)
        self.skipped += 1
        allowed = self.config.train.skip_nonfinite
        more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
        sentence = (
            f"the {wrong.replace('_', ' ')} became {values[wrong]} at step {self.step}; the weights did not move, and "
            f"--resume {path} repeats the step. Its items: {', '.join(items[:NAMED])}{more}"
        )
        if self.skipped > allowed:
            raise NotFinite(
                f"{sentence}. Lower optim.muon_lr and optim.adamw_lr, look at these items, or let a number of such "
                "steps pass with train.skip_nonfinite=N"
            )
        self.fabric.print(f"passed over, {self.skipped} of {allowed}: {sentence}")

    def advance(self, values: dict[str, float], stage: str = "") -> None:
        """Counts a step and says how it went."""
        self.step += 1
        self.bar.update()
        if self._averaged is not None and self.moved:
            self._averaged.update_parameters(self.bare)
        if self.log and self.due(self.config.train.log_every):
            speed = self.meter.read(self.step)
            self.log.write("train", self.step, values)
            self.log.write("speed", self.step, speed)
            first = next(iter(values))  # the loss
            self.bar.set_postfix_str(
                f"{stage}{first} {values[first]:.4f}, {self.meter.line(speed)}, "
                f"{peak_memory(self.fabric.device)}"
            )

    def show(self, metrics: dict[str, float], picture: Path) -> None:
        """Logs a validation, and the picture that it made."""
        self.log.write("validation", self.step, metrics)
        self.log.picture("preview", self.step, picture)
        scores = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
        self.bar.write(
            f"step {self.step}: {scores}; {self.meter.progress(self.step)}, {peak_memory(self.fabric.device)}"
        )

    # what is kept --------------------------------------------------------------------------------------------------------

    def is_best(self, score: float) -> bool:
        """Whether a validation's score (higher is better) is the best so far; it is remembered."""
        better = score > self.best
        self.best = max(self.best, score)
        return better

    def record(self, metrics: dict[str, float], training_items: int) -> dict:
        """What is written beside the weights of a model: its figures and what made them."""
        return {
            **metrics,
            "step": self.step,
            "hours": (time.perf_counter() - self._began) / 3600,
            "date": str(date.today()),
            "command": command_line(),
            "training_shapes": training_items,
            **describe_machine(self.fabric.device),
        }

    def save(self, folder: Path, about: dict | None = None) -> Path:
        """Writes the state of this step. Raises SaveError where it cannot be written."""
        path = folder / f"{self.step:08d}.pt"
        state = {
            "step": self.step,
            "best": self.best,
            "skipped": self.skipped,
            "seconds": time.perf_counter() - self._began,
            "model": self.bare.state_dict(),
            "optimizers": [o.state_dict() for o in self._optimizers],
            "scaler": self._scaler.state_dict(),
            "generators": {
                name: generator.get_state() for name, generator in self.generators.items()
            },
        }
        if self._averaged is not None:
            state["averaged"] = self._averaged.state_dict()
        state = gathered(state) if self._sharded else state
        if self.fabric.is_global_zero:
            save_state(
                folder, self.step, state, {"processes": self.fabric.world_size, **(about or {})}
            )
        return path


def _held(parameter: Tensor) -> int:
    """Entries of it that this process holds."""
    return parameter.to_local().numel() if isinstance(parameter, DTensor) else parameter.numel()


def _moving_average(decay: float) -> Callable:
    """Exponential, with a smaller decay in the first steps: an average of 0.999 over 50 steps would
    be where they began."""

    def average(mine: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        now = min(decay, (1.0 + int(count)) / (10.0 + int(count)))
        torch._foreach_lerp_(mine, current, 1.0 - now)

    return average
