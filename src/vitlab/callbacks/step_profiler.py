"""Print how the time of a training step is spent, by stage and by operation."""

import gzip
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pytorch_lightning.profilers import PyTorchProfiler
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerAction

from vitlab.distributed.process import this_process
from vitlab.files import replacing, set_aside, shorten
from vitlab.runs.console import show

log = logging.getLogger(__name__)

# Stages of a step by the last words of Lightning's actions.
STAGES = {
    "train_dataloader_next": "data: fetch the batch",
    "batch_to_device": "data: move and augment it",
    "training_step": "forward pass, loss, metrics",
    "backward": "backward pass",
    "configure_gradient_clipping": "clip the gradients",
    "optimizer_step": "optimizer",
}
NESTED = ("forward pass, loss, metrics", "backward pass", "clip the gradients")  # in the optimizer's step
OPERATIONS = 10  # in the table
PREFIX = "[pl][profile]"  # of the names that Lightning gives to its actions


class StepProfiler(PyTorchProfiler):
    """Lightning's PyTorchProfiler, which also prints two tables: the stages of a step, and its slowest operations.

    The steps of the schedule are written to `trace.json.gz`, of other ranks to `trace_rank_<n>.json.gz`, in the Trace
    Event Format that ui.perfetto.dev and chrome://tracing read.
    On a GPU, the operations are kernels, and it waits for each stage to time it, so steps take longer than without it.
    """

    STEP_FUNCTIONS = {"training_step"}  # noqa: RUF012 (as the base class); not those of the validation

    def __init__(
        self,
        *,
        dirpath: str,
        filename: str,
        schedule: Callable[[int], ProfilerAction],
        acc_events: bool,
        sort_by_key: str | None,
        row_limit: int,
        record_module_names: bool,
    ) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's CUDA build writes errors if there is no GPU
        # All of them by name: Lightning passes over keys that it does not know.
        table: dict[str, Any] = {"sort_by_key": sort_by_key, "row_limit": row_limit}
        events: dict[str, Any] = {"acc_events": acc_events, "record_module_names": record_module_names}
        super().__init__(
            dirpath=dirpath, filename=filename, schedule=schedule, on_trace_ready=self._write_trace, **table, **events
        )
        rank = this_process().rank
        self.trace = Path(dirpath) / (f"trace_rank_{rank}.json.gz" if rank else "trace.json.gz")

    def start(self, action_name: str) -> None:
        super().start(self._stage_of(action_name))

    def stop(self, action_name: str) -> None:
        super().stop(self._stage_of(action_name))

    def _stage_of(self, action: str) -> str:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        if action == "run_training_batch":
            return "training_step"  # Lightning's profiler would end a step inside of the optimizer's
        return STAGES.get(action.rpartition(".")[2], action)

    def _write_trace(self, profiler: torch.profiler.profile) -> None:
        self.trace.parent.mkdir(parents=True, exist_ok=True)
        set_aside(self.trace)
        with TemporaryDirectory() as folder, replacing(self.trace) as temporary:
            raw = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(raw))
            with raw.open(encoding="utf-8") as lines, gzip.open(temporary, "wt", encoding="utf-8") as packed:
                packed.writelines(line.replace(PREFIX, "") for line in lines)

    def summary(self) -> str:
        if isinstance(self.profiler, torch.profiler.profile) and self.profiler.profiler is None:
            self.profiler.stop()  # no step was recorded, and Lightning would fail to read its operations
            self.profiler = None
        report = super().summary()
        host = [event for event in self.function_events or () if event.device_type == DeviceType.CPU]
        kernels = [event for event in self.function_events or () if event.device_type != DeviceType.CPU]
        steps = sum(event.name == "ProfilerStep*" for event in host)
        if steps == 0:
            log.warning("profile: too few steps: none came after trainer.profiler.schedule.wait and warmup")
            return report
        actions, operations = Counter[str](), Counter[str]()  # milliseconds per step
        for event in host:
            actions[event.name.removeprefix(PREFIX)] += event.cpu_time_total / 1e3 / steps
        for event in kernels or host:
            if not event.is_user_annotation:
                time = event.self_device_time_total if kernels else event.self_cpu_time_total
                operations[event.name] += time / 1e3 / steps
        stages = {stage: actions[stage] for stage in STAGES.values()}
        stages["optimizer"] -= sum(stages[stage] for stage in NESTED)
        stages["Lightning, callbacks, logging"] = actions["ProfilerStep*"] - sum(stages.values())
        slowest = dict(operations.most_common(OPERATIONS))
        slowest["all others"] = operations.total() - sum(slowest.values())
        show(_table(f"stage (mean of {steps} steps)", stages), _table("operation", slowest))
        show(f"trace: {shorten(self.trace)} (at https://ui.perfetto.dev choose Open trace file)")
        return report


def _table(heading: str, milliseconds: Mapping[str, float]) -> Table:
    table = Table()
    table.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=50)  # names of kernels are long
    for unit in ("ms", "share"):
        table.add_column(unit, justify="right")
    for name, value in milliseconds.items():
        table.add_row(name, f"{value:,.2f}", f"{value / sum(milliseconds.values()):.1%}")
    return table
