"""Measure how the time of a training step is spent."""

import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pytorch_lightning.profilers import Profiler
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity

from vitlab.files import write_json, write_text
from vitlab.runs.console import show

log = logging.getLogger(__name__)

NEXT = ".train_dataloader_next"
# Stages by the ends of Lightning's action names. Time within a nested action counts only for that one.
STAGES = {
    NEXT: "fetch the batch",
    ".batch_to_device": "move and augment it",
    ".on_after_batch_transfer": "move and augment it",
    ".transfer_batch_to_device": "move and augment it",
    ".training_step": "forward pass, loss, metrics",
    ".backward": "backward pass",
    ".configure_gradient_clipping": "clip the gradients",
    ".optimizer_step": "optimizer",
    ".optimizer_zero_grad": "optimizer",
}
REST = "Lightning, callbacks, logging"
# Kinds of torch's operations by the beginnings of their names; the first match counts.
KINDS = {
    "matrix products, convolutions": ("addmm", "mm", "bmm", "baddbmm", "mkldnn_", "cudnn_", "conv", "_slow_conv"),
    "attention kernels": ("_scaled_dot_product", "_flash_attention", "_efficient_attention", "_cudnn_attention"),
    "softmax, loss": ("_softmax", "_log_softmax", "nll_loss"),
    "norms": ("native_layer_norm", "native_batch_norm", "cudnn_batch_norm", "native_group_norm"),
    "activations": ("gelu", "relu", "threshold", "silu", "tanh", "sigmoid"),
    "optimizer, clipping": ("_foreach", "_fused", "linalg_vector_norm", "lerp", "addcdiv", "addcmul", "sqrt"),
    "copies, casts": ("copy_", "cat", "stack", "index", "gather", "flip"),
    "sums, means": ("sum", "mean", "argmax"),
}
OTHERS = "other operations"


class StepProfiler(Profiler):
    """Times the stages of training steps, and the operations within a few steps.

    After training it prints both tables and writes them to `step.txt` and `step.json`. On a GPU it waits after each
    stage to time them separately, so steps take longer than without it.

    Args:
        dirpath: Folder for the files.
        warmup_steps: First steps, which are left out.
        operation_steps: The next steps, in which torch's profiler times operations instead.
    """

    def __init__(self, dirpath: str, warmup_steps: int, operation_steps: int) -> None:
        super().__init__(dirpath=dirpath)
        self.folder = Path(dirpath)
        self.warmup_steps = warmup_steps
        self.first_timed = warmup_steps + operation_steps
        self.started_steps = 0
        self.steps: list[dict[str, float]] = []
        self.operations: dict[str, float] = {}
        self._open: list[list[Any]] = []  # name, start, seconds in nested actions
        self._step: dict[str, float] | None = None
        self._step_started = 0.0
        self._torch: Any = None

    def start(self, action_name: str) -> None:
        now = self._now()
        if action_name.endswith(NEXT):
            self._end_step(now)
            self._begin_step()
            now = self._step_started = self._now()
        elif "on_validation_start" in action_name or "on_train_epoch_end" in action_name:
            self._end_step(now)  # what follows is not part of a step
        self._open.append([action_name, now, 0.0])

    def stop(self, action_name: str) -> None:
        while self._open:
            name, started, nested = self._open.pop()
            if name == action_name:
                break
        else:
            return
        seconds = self._now() - started
        if self._open:
            self._open[-1][2] += seconds
        stage = next((stage for ending, stage in STAGES.items() if name.endswith(ending)), None)
        if stage and self._step is not None and not name.startswith("[Callback]"):
            self._step[stage] += seconds - nested

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def _begin_step(self) -> None:
        if self.warmup_steps == self.started_steps < self.first_timed:
            os.environ["KINETO_LOG_LEVEL"] = "99"  # torch's CUDA build warns if there is no GPU
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._torch = torch.profiler.profile(activities=[ProfilerActivity.CPU, *cuda])
            self._torch.start()
        elif self.started_steps == self.first_timed:
            self._end_operations()
        self._step = defaultdict(float) if self.started_steps >= self.first_timed else None
        self.started_steps += 1

    def _end_step(self, now: float) -> None:
        if self._step is not None:
            self._step[REST] = now - self._step_started - sum(self._step.values())
            self.steps.append(self._step)
            self._step = None

    def _end_operations(self) -> None:
        if self._torch is not None:
            self._torch.stop()
            self.operations = sum_by_kind(self._torch.key_averages())
            self._torch = None

    def describe(self) -> None:
        """Print and write the tables once, after training."""
        self._end_operations()
        if self.started_steps and not self.steps:
            log.warning(f"profile: {self.started_steps} steps are too few: the first {self.first_timed} are not timed")
        self.started_steps = 0
        if not self.steps:
            return
        stages = [*dict.fromkeys(STAGES.values()), REST]
        milliseconds = {stage: 1e3 * median(step.get(stage, 0.0) for step in self.steps) for stage in stages}
        tables = [make_table(f"a training step (median of {len(self.steps)})", milliseconds, "ms")]
        result: dict[str, Any] = {"steps": len(self.steps), "milliseconds": milliseconds}
        if self.operations:
            result["operations"] = self.operations
            tables.append(make_table("inside: torch's operations", self.operations))
        self.folder.mkdir(parents=True, exist_ok=True)
        with (console := Console(soft_wrap=True, width=100)).capture() as text:
            console.print(*tables)
        write_text(self.folder / "step.txt", text.get())
        write_json(self.folder / "step.json", result)
        show(*tables)
        self.steps = []


def sum_by_kind(events: Any) -> dict[str, float]:
    """The fraction of time of each kind of operation in events of torch's profiler, on the GPU if there is one; the
    largest first."""
    rows = [event for event in events if event.key.startswith("aten::")]
    on_device = any(event.self_device_time_total for event in rows)
    seconds: Counter[str] = Counter()
    for event in rows:
        name = event.key.removeprefix("aten::")
        kind = next((kind for kind, names in KINDS.items() if name.startswith(names)), OTHERS)
        seconds[kind] += event.self_device_time_total if on_device else event.self_cpu_time_total
    return {kind: value / seconds.total() for kind, value in seconds.most_common() if value}


def make_table(title: str, values: Mapping[str, float], unit: str | None = None) -> Table:
    """A row with a bar for each value; with a unit also the values and their total."""
    total = sum(values.values())
    table = Table("stage" if unit else "operations", title=title, title_justify="left")
    for heading in filter(None, (unit, "share")):
        table.add_column(heading, justify="right")
    table.add_column("")
    for name, value in values.items():
        amount = [f"{value:,.2f}"] if unit else []
        table.add_row(name, *amount, f"{value / total:.1%}", "█" * round(30 * value / total))
    if unit:
        table.add_section()
        table.add_row("all", f"{total:,.2f}", "100.0%", "")
    return table
