"""The one training loop of the project: for the embedded models (hours) and for learning a subject (minutes).

What is trained is a `Task`; how is a `LoopConfig`. On the CPU a run that was killed and resumed ends with the same
weights, bit for bit, as one that was not (with the same number of threads): weights, moments, averages and random
states are all in the checkpoint.
"""

from __future__ import annotations

import copy
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigurationError, ThisnessError
from ..files import compare_shapes
from .checkpoint import Checkpoint, check_same_run, load_newest, remove_run, save_checkpoint
from .config import LoopConfig
from .interrupt import StopSignals
from .optimizers import Optimizers
from .parallel import Parallel
from .precision import computes_in_bf16
from .progress import JsonLines, Progress, RunningMeans, duration
from .task import Task
from .tracking import scalars

__all__ = ["LoopConfig", "Task", "TrainResult", "train"]

_NO_INFLUENCE = ("checkpoint_seconds", "keep", "log_every", "preview_every", "tracker")
NO_INFLUENCE = frozenset(f"config.{name}" for name in _NO_INFLUENCE)


@dataclass(frozen=True)
class TrainResult:
    """What `train` did. `seconds` counts all calls for this run; `losses` are the means since the last log line."""

    steps: int
    seconds: float
    finished: bool
    losses: dict[str, float]
    samples_per_second: float
    stopped_by: str | None = None  # a signal's name, "stop_after", or None


def train(
    task: Task,
    config: LoopConfig,
    folder: str | Path,
    *,
    resume: bool = True,
    progress: bool = True,
    stop_after: float | None = None,
    device: str | torch.device = "cpu",
) -> TrainResult:
    """Train a task, or go on with it.

    Args:
        task: what to train; its modules hold the result afterwards.
        config: how.
        folder: of this run: run.json, log.jsonl, checkpoints/, previews/.
        resume: go on from the newest whole checkpoint in the folder; False forgets what is there.
        progress: a bar on a terminal, lines elsewhere, both on stderr.
        stop_after: seconds of this call after which a checkpoint is written and the call returns.
        device: where to train.

    Returns:
        With `finished` false after stop_after, SIGTERM or Ctrl-C: the same call goes on from there.

    Raises:
        ConfigurationError: the folder holds a run of another configuration, or the task cannot be checkpointed.
        ThisnessError: the loss is no longer finite, or a checkpoint cannot be written; older checkpoints stay.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), StopSignals() as signals:
        return _Run(task, config, Path(folder), device, progress).go(resume, stop_after, signals)


class _Run:
    """One call of `train`."""

    def __init__(self, task: Task, config: LoopConfig, folder: Path, device: torch.device, progress: bool) -> None:
        self.task, self.config, self.folder, self.device, self.show = task, config, folder, device, progress
        self.parallel = Parallel()
        self.modules = task.modules()
        for module in self.modules.values():
            module.to(device)
        self.parallel.share_start(self.modules.values())
        task.device = device
        task.ema = {}
        if config.ema is not None:  # copied before on_start, which may hook the originals
            task.ema = {name: copy.deepcopy(m).requires_grad_(False).eval() for name, m in self.modules.items()}
        self.rng = torch.Generator().manual_seed(_seed(config.seed, self.parallel.rank, 0))
        torch.manual_seed(_seed(config.seed, self.parallel.rank, 1))
        task.on_start(device)
        self.groups = task.parameter_groups()
        self.parameters = [p for group in self.groups for p in group["params"]]
        self._check_parameters()
        self.optimizer = Optimizers(self.groups, config)
        self.means = RunningMeans()
        self.step = 0  # updates done
        self.seconds_before = 0.0
        self.started = time.monotonic()
        self.losses: dict[str, float] = {}
        self.rate = 0.0
        self.logged = (0, self.started)  # step and time of the last log line

    def go(self, resume: bool, stop_after: float | None, signals: StopSignals) -> TrainResult:
        skipped = self._begin(resume)
        config, task, first = self.config, self.task, self.parallel.first
        self.progress = Progress(task.name, self.step, config.steps, self.show and first, self.device)
        for line in skipped:
            self.progress.say(line)
        if self.step:
            self.progress.say(f"going on from step {self.step} of {config.steps}")
        log = None
        if first:
            log = JsonLines(self.folder / "log.jsonl", self.step, scalars(config.tracker, self.folder, self.step))
        saved_at, saved_step = time.monotonic(), self.step
        self.logged = (self.step, time.monotonic())
        stopped_by: str | None = None
        try:
            while self.step < config.steps and stopped_by is None:
                now = time.monotonic()
                late = stop_after is not None and now - self.started >= stop_after
                due = now - saved_at >= config.checkpoint_seconds
                stop, late, due = self._update([signals.received is not None, late, due])
                if stop or late:
                    stopped_by = signals.received or ("stop_after" if late else "another process")
                done = self.step == config.steps or stopped_by is not None
                self.progress.step()
                if config.log_every and (self.step % config.log_every == 0 or done):
                    self._log(log)
                if due or done:
                    self._save()
                    saved_at, saved_step = time.monotonic(), self.step
                if (
                    config.preview_every
                    and (self.step % config.preview_every == 0 or self.step == config.steps)
                    and first
                ):
                    self._preview(log)
        finally:
            self.progress.close()
            if log:
                log.close()
        if self.step == config.steps and saved_step < self.step:
            self._save()
        self._say_end(stopped_by)
        return TrainResult(self.step, self._seconds(), self.step == config.steps, self.losses, self.rate, stopped_by)

    def _begin(self, resume: bool) -> list[str]:
        """Compare with what is in the folder and load its newest checkpoint; lines about those passed over."""
        if self.parallel.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not resume:
                remove_run(self.folder)
            run = {"task": self.task.name, "config": asdict(self.config), "settings": self.task.settings()}
            check_same_run(self.folder, {**run, "processes": self.parallel.world}, NO_INFLUENCE)
        self.parallel.wait()
        checkpoint, skipped = load_newest(self.folder) if resume else (None, [])
        if checkpoint is not None:
            self._restore(checkpoint)
        return skipped

    def _update(self, flags: list[bool]) -> list[bool]:
        """One update of the weights. The flags come back true if any process set them."""
        config, factor = self.config, self.config.factor(self.step)
        self.optimizer.scale(factor)
        self.optimizer.zero_grad()
        low = config.precision == "bf16" or (config.precision == "auto" and computes_in_bf16(self.device))
        for _ in range(config.accumulate):
            with torch.autocast(self.device.type, torch.bfloat16) if low else nullcontext():
                parts = self.task.loss(self.step, self.rng)
            (parts["loss"] / config.accumulate if config.accumulate > 1 else parts["loss"]).backward()
            self.means.add(self.step + 1, parts)
        flags = self.parallel.average_gradients(self.parameters, flags)
        if config.clip is not None:
            norm = self.task.clip(self.parameters, config.clip)
            self.means.add(self.step + 1, {"gradient": norm})
        self.optimizer.step()
        self.step += 1
        if config.ema is not None:
            self._average(min(config.ema, (1 + self.step) / (10 + self.step)))
        return flags

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        for name, module in self.modules.items():
            averaged = self.task.ema[name]
            pairs = list(zip(averaged.parameters(), module.parameters(), strict=True))
            torch._foreach_lerp_([a for a, _ in pairs], [p.detach() for _, p in pairs], 1 - decay)
            for a, b in zip(averaged.buffers(), module.buffers(), strict=True):
                a.copy_(b)

    def _log(self, log: JsonLines | None) -> None:
        self._check_finite()
        self.losses = self.means.read()
        step, then = self.logged
        now = time.monotonic()
        samples = (self.step - step) * self.task.batch_size * self.config.accumulate * self.parallel.world
        self.rate = samples / max(now - then, 1e-9)
        self.logged = (self.step, now)
        entry: dict[str, Any] = {"step": self.step, "seconds": round(self._seconds(), 3), **self.losses}
        entry |= {"lr": self.optimizer.param_groups[0]["lr"], "samples/s": round(self.rate, 3)}
        if log:
            log.write(entry)
        self.progress.report(self.step, now - self.started, entry)

    def _preview(self, log: JsonLines | None) -> None:
        """Let the task show something, and change nothing by it; one that fails does not end hours of training."""
        folder = self.folder / "previews"
        folder.mkdir(exist_ok=True)
        modes = [(part, part.training) for module in self.modules.values() for part in module.modules()]
        began = time.monotonic()
        try:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                numbers = self.task.preview(folder, self.step)
        except Exception as error:
            self.progress.say(f"the preview of step {self.step} failed ({type(error).__name__}: {error}); going on")
            numbers = None
        for part, mode in modes:
            part.training = mode
        self.logged = (self.logged[0], self.logged[1] + time.monotonic() - began)
        if numbers:
            if log:
                log.write({"step": self.step, "preview": True, **numbers})
            self.progress.say("  ".join(f"{name} {value:.4g}" for name, value in numbers.items()))

    def _check_finite(self) -> None:
        bad = self.means.not_finite()
        if any(self.parallel.gather(bool(bad))):
            step = min(bad.values(), default=self.step)
            names = sorted(name for name, first in bad.items() if first == step) or ["another process's loss"]
            names = [name for name in names if name != "gradient"] or names
            lr = self.optimizer.rates[0] * self.config.factor(step - 1)
            cause = (
                "the learning rate is too high" if step > 1 else "the data or the weights at the start are not finite"
            )
            clip = "" if self.config.clip is not None else ", set clip=1"
            raise ThisnessError(
                f"{', '.join(names)} became NaN or infinite in step {step} of {self.config.steps} (lr {lr:.3g}); most "
                f"likely {cause}: lower it{clip} or use precision fp32; "
                f"checkpoints before that step are kept in {self.folder}"
            )

    def _save(self) -> None:
        """Write a checkpoint, unless what it would hold is not finite."""
        self._check_finite()
        broken = [n for n, m in self.modules.items() if not all(bool(torch.isfinite(p).all()) for p in m.parameters())]
        if broken:
            raise ThisnessError(
                f"the weights of {', '.join(broken)} are NaN or infinite after step {self.step} although the loss was "
                f"not: lower the learning rate or set clip=1; earlier checkpoints are kept in {self.folder}"
            )
        loop = {"rng": self.rng.get_state(), "global": torch.get_rng_state()}
        if self.device.type == "cuda":
            loop["cuda"] = torch.cuda.get_rng_state(self.device)
        states = self.parallel.gather({**loop, **self.means.state()})
        if self.parallel.first:
            extra = self.task.extra_state()
            tensors = {
                "weights": _state(self.modules),
                "average": _state(self.task.ema),
                "optimizer": self.optimizer.moments(),
                "loop": {f"{rank}/{name}": t for rank, state in enumerate(states) for name, t in state.items()},
                "extra": {name: value for name, value in extra.items() if isinstance(value, Tensor)},
            }
            plain = {name: value for name, value in extra.items() if not isinstance(value, Tensor)}
            state = {"seconds": self._seconds(), "extra": plain, "torch": torch.__version__}
            save_checkpoint(self.folder, Checkpoint(self.step, state, tensors), self.config.keep)
        self.parallel.wait()

    def _restore(self, checkpoint: Checkpoint) -> None:
        tensors = checkpoint.tensors
        _load(self.modules, tensors["weights"], "weights")
        if self.task.ema:
            _load(self.task.ema, tensors.get("average", {}), "average")
        self.optimizer.load_moments(tensors.get("optimizer", {}))
        prefix = f"{self.parallel.rank}/"
        loop = {k.removeprefix(prefix): v for k, v in tensors["loop"].items() if k.startswith(prefix)}
        self.rng.set_state(loop["rng"])
        torch.set_rng_state(loop["global"])
        if self.device.type == "cuda" and "cuda" in loop:
            torch.cuda.set_rng_state(loop["cuda"], self.device)
        self.means.load({name: t for name, t in loop.items() if name.startswith("means/")}, self.device)
        self.task.load_extra_state({**checkpoint.state.get("extra", {}), **tensors.get("extra", {})})
        self.step, self.seconds_before = checkpoint.step, float(checkpoint.state["seconds"])

    def _check_parameters(self) -> None:
        kept = {id(p): (f"{n}.{k}", p.dtype) for n, m in self.modules.items() for k, p in m.named_parameters()}
        if not self.parameters:
            raise ConfigurationError(f"{self.task.name}: nothing to train: no parameter requires a gradient")
        if any(id(p) not in kept for p in self.parameters):
            raise ConfigurationError(f"{self.task.name}: a trained parameter is in none of modules(): it would be lost")
        for name, dtype in (kept[id(p)] for p in self.parameters):
            if dtype != torch.float32:
                raise ConfigurationError(
                    f"{self.task.name}: {name} is {dtype}: what is trained must be float32 (small updates are lost in "
                    "half precision); use precision bf16 for speed"
                )

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _say_end(self, stopped_by: str | None) -> None:
        if stopped_by is None:
            self.progress.say(f"done: {self.step} steps in {duration(self._seconds())}")
        else:
            why = "time is up (stop_after)" if stopped_by == "stop_after" else f"stopped by {stopped_by}"
            where = f"step {self.step} of {self.config.steps}"
            self.progress.say(f"{why} at {where}; checkpoint saved: the same command goes on from there")


def _seed(seed: int, rank: int, stream: int) -> int:
    """Seeds of processes and streams that do not collide for neighbouring seeds (mixed by odd factors)."""
    return (seed * 0x9E3779B97F4A7C15 + rank * 0xD1B54A32D192ED03 + stream * 0x94D049BB133111EB) % (1 << 63)


def _state(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{name}/{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()}


def _load(modules: dict[str, nn.Module], tensors: dict[str, Tensor], what: str) -> None:
    expect = {name: tuple(tensor.shape) for name, tensor in _state(modules).items()}
    compare_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, expect, f"the checkpoint's {what}")
    for name, module in modules.items():
        module.load_state_dict({k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")})
