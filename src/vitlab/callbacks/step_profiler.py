"""Print how the time of a training step is spent, by stage and by operation."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pytorch_lightning.profilers import PyTorchProfiler
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerAction

from vitlab.runs.console import show

log = logging.getLogger(__name__)

# Stages of a step by the last words of Lightning's actions.
STAGES = {
    "train_dataloader_next": "fetch the batch",
    "batch_to_device": "move and augment it",
    "training_step": "forward pass, loss, metrics",
    "backward": "backward pass",
    "configure_gradient_clipping": "clip the gradients",
    "optimizer_step": "optimizer",
}
NESTED = ("forward pass, loss, metrics", "backward pass", "clip the gradients")  # in the optimizer's step
OPERATIONS = 10  # in the table


class StepProfiler(PyTorchProfiler):
    """Lightning's PyTorchProfiler, which also prints two tables: the stages of a step, and its slowest operations.

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
        super().__init__(dirpath=dirpath, filename=filename, schedule=schedule, **table, **events)

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
            actions[event.name.removeprefix("[pl][profile]")] += event.cpu_time_total / 1e3 / steps
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
        return report


def _table(heading: str, milliseconds: Mapping[str, float]) -> Table:
    table = Table()
    table.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=50)  # names of kernels are long
    for unit in ("ms", "share"):
        table.add_column(unit, justify="right")
    for name, value in milliseconds.items():
        table.add_row(name, f"{value:,.2f}", f"{value / sum(milliseconds.values()):.1%}")
    return table
