"""A training run: module and optimizers on the devices, saved states, logs, the parts of a step.

The loop that calls these parts in order stands in the scripts, train_vqvae.py and train_gpt.py.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from datetime import date
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from tar3d import config as configuration
from tar3d.config.checks import nearest
from tar3d.optim.groups import routing_table
from tar3d.runtime import (
    command_line,
    compute_dtype,
    describe_machine,
    deterministic,
    peak_memory,
    progress_bar,
)
from tar3d.throughput import Meter, find_peak
from tar3d.training.block_choice import prepare_module
from tar3d.training.errors import NotFinite, Stopped
from tar3d.training.gradients import clip_gradients, without_finite_gradient
from tar3d.training.log import RunLog
from tar3d.training.moving_average import MovingAverage
from tar3d.training.resume import check_state_identity, new_identity
from tar3d.training.run_folder import write_record
from tar3d.training.sharding import describe_shard, gathered
from tar3d.training.signals import SignalAgreement, catch_signals
from tar3d.training.state import STATES, load_module, load_state, restore, save_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lightning_fabric import Fabric
    from torch.optim import Optimizer

    from tar3d.config import GPTRunConfig, VQVAEConfig
    from tar3d.data.datasets.sampler import JoinedOrder, TrainingOrder

ModuleT = TypeVar("ModuleT", bound=nn.Module)
NOT_FINITE = "nonfinite"  # folder of a run: states from before steps that were not finite
# Smallest loss scale under float16: gradients that overflow even at it mean divergence.
SMALLEST_SCALE = 1.0


class Run(Generic[ModuleT]):
    """One training, from its start or from a saved state to its last step.

    `module` is trained (sharded over the processes with `shard`); the random `generators` that the
    loop draws from are saved and restored with the rest. `trackers`: see `RunLog`. What data a step
    sees is a function of (seed, step). Every process of a job makes the same calls.

    `optimizers` are set after the run is made, since sharding replaces parameters.
    """

    optimizers: list[Optimizer]
    meter: Meter  # within a session
    log: RunLog  # within a session, of the first process

    def __init__(
        self,
        name: str,
        folder: Path,
        fabric: Fabric,
        module: ModuleT,
        config: VQVAEConfig | GPTRunConfig,
        *,
        generators: dict[str, torch.Generator],
        shard: bool = False,
        trackers: dict[str, str] | None = None,
    ) -> None:
        self.name, self.folder, self.fabric = name, folder, fabric
        self.module, self.config, self.generators = module, config, generators
        self.step, self.best, self.skipped = 0, -math.inf, 0
        self._identity: dict = {}  # set by `restore`
        self._resumed: dict = {}  # as `write_record` takes it
        self._seconds = 0.0  # spent before the run was resumed
        self._trackers = trackers
        self._passes = 1  # forward passes of a step
        self._values: dict[str, Tensor] = {}  # values of a step, means over its passes
        self._agree_on_signal = SignalAgreement(fabric)
        t = config.train
        fabric.print(routing_table(module, config.optim))
        # Copies are made before blocks are compiled and sharded.
        self._average = MovingAverage(module, t.ema) if t.ema else None
        self._sharded = shard and fabric.world_size > 1
        self._whole = copy.deepcopy(module) if self._sharded and fabric.is_global_zero else None
        self._chosen = prepare_module(module, config, fabric)  # in the place of "auto"
        self.model = fabric.setup(module)
        if self._sharded:
            fabric.print(describe_shard(module))
        if self._average is not None:
            if self._sharded:
                fabric.setup_module(self._average)
            else:
                self._average.to(fabric.device)
        self._precision = self._chosen["train.precision"]
        self._scaler = torch.amp.GradScaler(
            fabric.device.type, enabled=self._precision == "16-mixed"
        )

    def eval_model(self) -> ModuleT:
        """The module to validate and to save: its moving average if there is one (`train.ema`).

        Where weights are sharded it is a whole copy on the first process, and only there; every
        process has to call this.
        """
        module = self.module if self._average is None else cast("ModuleT", self._average.module)
        if not self._sharded:
            return module
        weights = gathered(module.state_dict())
        if self._whole is None:
            return module
        self._whole.load_state_dict(weights)
        return self._whole.to(self.fabric.device)

    # the loop ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def session(
        self,
        order: TrainingOrder | JoinedOrder,
        item_name: Callable[[int], str],
        *,
        unit: str,
        items: int,
        flops: float,
    ) -> Iterator[None]:
        """Opens what the loop needs: meter, logs, progress bar, signals, deterministic mode.

        `items` (in `unit`s) and `flops` are those of a step on one device, for the figures of
        speed; `order` says which items a step has and `item_name` their names, for messages.
        """
        device, first, total = self.fabric.device, self.step, self.config.train.steps
        self._items = lambda step: [item_name(index) for _, index in order.of_step(step)]
        disable = not self.fabric.is_global_zero
        with self._determinism(True):
            peak = find_peak(device, compute_dtype(self._precision))
            self.meter = Meter(first, total, items=items, unit=unit, flops=flops, peak=peak)
            self.fabric.print(
                f"{flops / 1e9:,.1f} model GFLOP a step and device; MFU is of {peak.source}"
            )
            if self.fabric.is_global_zero:
                settings = configuration.to_mapping(self.config)
                self.log = RunLog(self.folder, first, self._trackers, settings)
            self.bar = progress_bar(total=total, initial=first, desc=self.name, disable=disable)
            self._began = time.perf_counter() - self._seconds
            with catch_signals() as self._received, contextlib.ExitStack() as cleanup:
                cleanup.callback(self.bar.close)
                if self.fabric.is_global_zero:
                    cleanup.callback(self.log.close)
                yield

    def _determinism(self, on: bool) -> contextlib.AbstractContextManager[None]:
        """Deterministic algorithms within it, on or off (`train.deterministic`)."""
        return deterministic(on) if self.config.train.deterministic else contextlib.nullcontext()

    def is_due(self, every: int) -> bool:
        """True at each `every`-th step, and after the last one."""
        return self.step % every == 0 or self.step == self.config.train.steps

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """Excludes a block (validation, saving) from the figures of speed.

        It may use nondeterministic algorithms, as it moves no weight. Processes leave it together.
        """
        self.meter.pause()
        with self._determinism(False):
            yield
        self.fabric.barrier()
        self.meter.resume()

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, along a new first dimension where there are several."""
        return cast("Tensor", self.fabric.all_gather(tensor))

    def received_signal(self) -> int:
        """The stopping signal that any process has received, 0 for none; to be called once a step.

        All processes get the same answer.
        """
        return self._agree_on_signal(max(self._received, default=0))

    def stop_on(self, signum: int) -> None:
        """Raises Stopped if there was a signal and steps are left."""
        if signum and self.step < self.config.train.steps:
            raise Stopped(signum, self.step, self.folder / STATES)

    # a step -----------------------------------------------------------------------------------

    def micro_batches(self, rows: int) -> Iterator[slice]:
        """The rows of a step on this device, `train.micro_batch_size` at a time.

        Processes exchange gradients in the backward pass of the last ones.
        """
        micro = self.config.train.micro_batch_size or rows
        if rows % micro:
            allowed = [n for n in range(1, rows + 1) if rows % n == 0]
            raise ValueError(
                f"train.micro_batch_size {micro} does not divide the {rows} rows of each device: "
                f"write train.micro_batch_size={nearest(micro, allowed)}"
            )
        self._passes, self._values = rows // micro, {}
        for start in range(0, rows, micro):
            with self.fabric.no_backward_sync(self.model, enabled=start + micro < rows):
                yield slice(start, start + micro)

    def backward(self, loss: Tensor, values: dict[str, Tensor]) -> None:
        """Adds the gradients of a micro batch; its scalar `values` are averaged over the step."""
        self.fabric.backward(self._scaler.scale(loss / self._passes))
        for name, value in values.items():
            self._values[name] = self._values.get(name, 0.0) + value.detach().float() / self._passes

    def clip_gradients(self) -> Tensor:
        """Clips the gradients to the norm `optim.grad_clip`; returns their norm before that."""
        for optimizer in self.optimizers:
            self._scaler.unscale_(optimizer)
        return clip_gradients(self.module, self.config.optim.grad_clip or math.inf)

    def step_values(self, norm: Tensor) -> dict[str, float]:
        """The values of the step and its "gradient_norm", means over the processes."""
        # The one place where the CPU waits for the device: before the optimizers move, and for all
        # numbers at once.
        numbers = self.fabric.all_reduce(
            torch.stack([*self._values.values(), norm.float()]), reduce_op="mean"
        )
        names = (*self._values, "gradient_norm")
        return dict(zip(names, cast("Tensor", numbers).tolist(), strict=True))

    def check_finite(self, values: dict[str, float]) -> bool:
        """True where the loss and the gradient are finite, so that the optimizers may step.

        False where float16 overflowed (the next step has a smaller scale), or where the step may be
        skipped (`train.skip_nonfinite`). Otherwise it raises NotFinite, before the weights move.
        No optimizer may step then, even if its own gradients are finite.
        """
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        overflowed = (
            wrong == ["gradient_norm"]
            and self._scaler.is_enabled()
            and self._scaler.get_scale() >= SMALLEST_SCALE
            # Without one, the norm itself is too large for float32, which no scale changes.
            and len(without_finite_gradient(self.module, self.fabric)) > 0
        )
        if wrong and not overflowed:
            self._skip_step(values, wrong[0])
        return not wrong

    def optimizer_step(self) -> None:
        """Moves the weights."""
        for optimizer in self.optimizers:
            self._scaler.step(optimizer)

    def update_average(self) -> None:
        """Moves the average of the weights, if there is one (`train.ema`)."""
        if self._average is not None:
            self._average.update_parameters(self.module)

    def _skip_step(self, values: dict[str, float], wrong: str) -> None:
        """Saves what repeats a step that is not finite; raises NotFinite if it is one too many."""
        items = self._items(self.step)
        about = {
            "values": {name: str(value) for name, value in values.items()},
            "items": items,
            "parameters_without_finite_gradient": without_finite_gradient(self.module, self.fabric),
        }
        state = self._save(self.folder / NOT_FINITE, about)
        self.skipped += 1
        allowed = self.config.train.skip_nonfinite
        error = NotFinite(wrong, values[wrong], self.step, items, state)
        if self.skipped > allowed:
            raise error
        self.fabric.print(f"passed over, {self.skipped} of {allowed}: {error.found}")

    def finish_step(
        self, values: dict[str, float], phase: str = "", more: dict[str, float] | None = None
    ) -> None:
        """Clears the gradients, counts the step, and logs its values when it is time.

        `phase` begins the line of the progress bar; `more` values end the row of train.csv.
        """
        self._scaler.update()
        rate = self.optimizers[0].param_groups[0]["lr"]
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.step += 1
        self.bar.update()
        if self.fabric.is_global_zero and self.log.begin():
            write_record(self.folder, self.config, self._resumed, self._chosen)
        if self.fabric.is_global_zero and self.is_due(self.config.train.log_every):
            speed = self.meter.read(self.step)
            row = values | {"lr": rate, "skipped": self.skipped} | (more or {})
            self.log.write("train", self.step, row)
            self.log.write("speed", self.step, speed)
            first = next(iter(values))  # the loss
            self.bar.set_postfix_str(
                f"{phase}{first} {values[first]:.4f}, {self.meter.line(speed)}, "
                f"{peak_memory(self.fabric.device)}"
            )

    def log_validation(self, metrics: dict[str, float], preview: Path) -> None:
        """Logs a validation, and the image that it made."""
        self.log.write("validation", self.step, metrics)
        self.log.image("preview", self.step, preview)
        scores = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
        self.bar.write(
            f"step {self.step}: {scores}; {self.meter.progress(self.step)}, "
            f"{peak_memory(self.fabric.device)}"
        )

    # results ----------------------------------------------------------------------------------

    def is_best(self, score: float) -> bool:
        """Remembers a validation's score (higher is better); True if it is the best so far."""
        better = score > self.best
        self.best = max(self.best, score)
        return better

    def model_record(self, metrics: dict[str, float], training_items: int) -> dict:
        """The record saved beside the weights of a model: its metrics and what made them."""
        return {
            **metrics,
            "step": self.step,
            "hours": (time.perf_counter() - self._began) / 3600,
            "date": str(date.today()),
            "command": command_line(),
            "training_shapes": training_items,
            **describe_machine(self.fabric.device),
        }

    def save(self) -> None:
        """Saves the state of this step. Raises SaveError where it cannot be written."""
        with self.untimed():
            self._save(self.folder / STATES)

    def _save(self, folder: Path, about: dict | None = None) -> Path:
        state = {
            "step": self.step,
            "identity": self._identity,
            "best": self.best,
            "skipped": self.skipped,
            "seconds": time.perf_counter() - self._began,
            "model": self.module.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "scaler": self._scaler.state_dict(),
            "generators": {
                name: generator.get_state() for name, generator in self.generators.items()
            },
        }
        if self._average is not None:
            state["averaged"] = self._average.state_dict()
        state = gathered(state) if self._sharded else state
        if self.fabric.is_global_zero:
            record = {"processes": self.fabric.world_size, **(about or {})}
            save_state(folder, self.step, state, record)
        return folder / f"{self.step:08d}.pt"

    def restore(self, path: Path | None, facts: dict[str, str]) -> None:
        """Continues from the file of a state that `prepare_folder` found good; None: from step 0.

        `facts` identify this training together with its configuration (`resume`). Raises ValueError
        where the state is that of another one.
        """
        self._identity = new_identity(self.config, facts)
        if path is None:
            return
        state = load_state(path)
        self._resumed, line = check_state_identity(state, self.config, facts, path)
        self.fabric.print(line)
        try:
            restore(state, self.module, self.optimizers)
            self.step, self.best, self.skipped, self._seconds = (
                state[k] for k in ("step", "best", "skipped", "seconds")
            )
            if state["scaler"] and self._scaler.is_enabled():  # train.precision may have changed
                self._scaler.load_state_dict(state["scaler"])
            for name, generator in self.generators.items():
                generator.set_state(state["generators"][name])
            if self._average is not None:
                load_module(self._average, state["averaged"])
        except KeyError as e:
            raise ValueError(
                f"{path} lacks {e}: it is of another kind of training, or of one without it "
                "(train.ema). Resume with what that run was started with (run.json in its folder)"
            ) from e
