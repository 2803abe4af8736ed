"""Where a training step's time goes, in words."""

import logging
import os
import time
from collections import defaultdict
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

# Endings of Lightning's names of what a step is made of. The time of one inside another counts for itself alone.
STAGES = {
    ".train_dataloader_next": "fetch the batch",
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
NEXT = ".train_dataloader_next"

# Beginnings of the names of torch's operations; the first that fits counts.
KINDS = {
    "matrix products, convolutions": (
        "addmm",
        "mm",
        "bmm",
        "baddbmm",
        "mkldnn_",
        "cudnn_",
        "convolution",
        "_slow_conv",
    ),
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
    """Times the stages of training steps, then the operations inside some steps more.

    At the end of training both tables are printed and written to `step.txt` and `step.json`. On a GPU it waits after
    each stage, so that each has its own time: the steps take longer than without it.

    Args:
        dirpath: Folder for the files.
        warmup_steps: First steps, which are left out.
        operation_steps: Steps that follow these, watched by torch's profiler and left out of the stages' times.
    """

    def __init__(self, dirpath: str, warmup_steps: int, operation_steps: int) -> None:
        super().__init__(dirpath=dirpath)
        self.folder = Path(dirpath)
        self.warmup_steps = warmup_steps
        self.operation_steps = operation_steps
        self.begun = 0
        self.steps: list[dict[str, float]] = []
        self.operations: dict[str, float] = {}
        self._open: list[tuple[str, float, float]] = []  # name, start, seconds of what ran inside
        self._step: dict[str, float] | None = None
        self._step_started = 0.0
        self._torch: Any = None

    def start(self, action_name: str) -> None:
        now = self._now()
        if action_name.endswith(NEXT):
            self._end_step(now)
            self._begin_step()
            now = self._now()
            self._step_started = now
        elif "on_validation_start" in action_name or "on_train_epoch_end" in action_name:
            self._end_step(now)  # what follows is no part of a step
        self._open.append((action_name, now, 0.0))

    def stop(self, action_name: str) -> None:
        while self._open:
            name, started, inside = self._open.pop()
            if name == action_name:
                break
        else:
            return
        seconds = self._now() - started
        if self._open:
            outer, outer_started, outer_inside = self._open.pop()
            self._open.append((outer, outer_started, outer_inside + seconds))
        stage = next((stage for ending, stage in STAGES.items() if name.endswith(ending)), None)
        if stage and self._step is not None and not name.startswith("[Callback]"):
            self._step[stage] += seconds - inside

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def _begin_step(self) -> None:
        first = self.warmup_steps
        if self.begun == first and self.operation_steps:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            os.environ["KINETO_LOG_LEVEL"] = "99"  # its CUDA build complains where there is no GPU
            self._torch = torch.profiler.profile(activities=activities)
            self._torch.start()
        elif self.begun == first + self.operation_steps:
            self._end_operations()
        self._step = defaultdict(float) if self.begun >= first + self.operation_steps else None
        self.begun += 1

    def _end_step(self, now: float) -> None:
        if self._step is not None:
            self._step[REST] = now - self._step_started - sum(self._step.values())
            self.steps.append(self._step)
            self._step = None

    def _end_operations(self) -> None:
        if self._torch is not None:
            self._torch.stop()
            self.operations = by_kind(self._torch.key_averages())
            self._torch = None

    def describe(self) -> None:
        """Prints and writes the tables once, after training."""
        self._end_operations()
        if self.begun and not self.steps:
            log.warning(
                f"profile: {self.begun} steps are too few: {self.warmup_steps + self.operation_steps} come before"
            )
        self.begun = 0
        if not self.steps:
            return
        stages = [*dict.fromkeys(STAGES.values()), REST]
        milliseconds = {stage: 1e3 * median(step.get(stage, 0.0) for step in self.steps) for stage in stages}
        tables = [shares(f"a training step (median of {len(self.steps)})", milliseconds, "ms")]
        figures: dict[str, Any] = {"steps": len(self.steps), "milliseconds": milliseconds}
        if self.operations:
            figures["operations"] = {kind: share for kind, share in self.operations.items() if share}
            tables.append(shares("inside: torch's operations", figures["operations"], "share"))
        self.folder.mkdir(parents=True, exist_ok=True)
        with (console := Console(soft_wrap=True, width=100)).capture() as text:
            console.print(*tables)
        write_text(self.folder / "step.txt", text.get())
        write_json(self.folder / "step.json", figures)
        show(*tables)
        self.steps = []


def by_kind(events: Any) -> dict[str, float]:
    """The share of each kind of operation in the time of torch's profiler events: a GPU's time where there is one."""
    rows = [event for event in events if event.key.startswith("aten::")]
    device = sum(event.self_device_time_total for event in rows)
    seconds: dict[str, float] = dict.fromkeys((*KINDS, OTHERS), 0.0)
    for event in rows:
        name = event.key.removeprefix("aten::")
        kind = next((kind for kind, names in KINDS.items() if name.startswith(names)), OTHERS)
        seconds[kind] += event.self_device_time_total if device else event.self_cpu_time_total
    total = sum(seconds.values()) or 1.0
    return {kind: value / total for kind, value in seconds.items()}


def shares(title: str, figures: Mapping[str, float], unit: str) -> Table:
    """A row a figure with a bar, the total below."""
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    if unit != "share":
        table.add_column(unit, justify="right")
    table.add_column("share", justify="right")
    table.add_column("")
    total = sum(figures.values()) or 1.0
    rows = figures.items() if unit == "ms" else sorted(figures.items(), key=lambda row: -row[1])
    for name, value in rows:
        amount = [] if unit == "share" else [f"{value:,.2f}"]
        table.add_row(name, *amount, f"{value / total:.1%}", "█" * round(30 * value / total))
    if unit != "share":
        table.add_section()
        table.add_row("all", f"{total:,.2f}", "100.0%", "")
    return table
