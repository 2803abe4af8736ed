"""Launchers for Hydra, which looks for plugins only in this package and imports it at every start."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from vitlab.errors import UserError
from vitlab.system import LINUX, WINDOWS, usable_cores

if TYPE_CHECKING:
    from vitlab.sweeps.executors import Executor
    from vitlab.sweeps.sweep import Sweep


class SweepLauncher(Launcher):
    """Hands a sweep over to `vitlab.sweeps`, which runs each job in its own process."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from vitlab.sweeps.runner import run_grid

        run_grid(self.sweep(), self.executor(), job_overrides)
        return [JobReturn(overrides=list(o), status=JobStatus.COMPLETED, _return_value=None) for o in job_overrides]

    def sweep(self) -> "Sweep":
        """Return the sweep that the command line describes."""
        from vitlab.sweeps.sweep import Sweep

        folder = Path(os.path.abspath(self.config.hydra.sweep.dir))  # noqa: PTH100  # without `..`
        return Sweep(folder, self.config.hydra, self._compose, _compare)

    def executor(self) -> "Executor":
        """Return the executor that runs the jobs' processes."""
        raise NotImplementedError

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        OmegaConf.set_readonly(config.hydra, False)  # the sweep still fills in the job's number
        OmegaConf.set_struct(config.hydra, False)
        return config


class ProcessLauncher(SweepLauncher):
    """Runs the jobs in processes on this machine.

    Args:
        jobs: Number at a time, or "auto".
    """

    def __init__(self, jobs: int | str) -> None:
        self.jobs = jobs

    def executor(self) -> "Executor":
        from vitlab.sweeps.executors import LocalExecutor, visible_gpus
        from vitlab.sweeps.fork_server import RUN_MODULES

        jobs = check_count("hydra.launcher.jobs", self.jobs, or_auto=True)
        gpus = [] if self.config.trainer.accelerator == "cpu" else visible_gpus()
        # Not with GPUs: a fork cannot use one that something it imports has touched, and would save little there.
        return LocalExecutor(jobs, gpus, usable_cores(), preload=RUN_MODULES if LINUX and not gpus else None)


class SubmititLauncher(SweepLauncher):
    """Submits the jobs to SLURM, or imitates that on this machine.

    Args:
        cluster: "slurm" or "local".
        jobs: Number that may be queued or running at a time, or "auto": all.
        tasks_per_node: Processes per machine.
        **parameters: Of submitit's executor.
    """

    def __init__(self, cluster: str, jobs: int | str, tasks_per_node: int | None, **parameters: Any) -> None:
        self.cluster, self.jobs, self.tasks_per_node, self.parameters = cluster, jobs, tasks_per_node, parameters

    def executor(self) -> "Executor":
        from vitlab.sweeps.executors import SubmititExecutor

        if WINDOWS:
            raise UserError(f"hydra/launcher=submitit_{self.cluster} needs Linux; hydra/launcher=processes does not")
        folder = Path(self.config.hydra.sweep.dir) / "submitit"
        jobs = check_count("hydra.launcher.jobs", self.jobs, or_auto=True)
        try:
            return SubmititExecutor(folder, self.cluster, jobs, self.tasks_per_node, self.parameters)
        except ImportError as error:
            raise UserError(
                f'hydra/launcher=submitit_{self.cluster} needs submitit: pip install -e ".[slurm]"'
            ) from error


def _compare(folder: Path) -> None:
    from vitlab.leaderboard.leaderboard import make_leaderboard  # takes seconds

    make_leaderboard([folder])


def check_count(key: str, value: Any, *, or_auto: bool = False) -> Any:
    """Return the value of a key that takes a whole number of at least 1.

    Raises:
        UserError: It has another value.
    """
    if (or_auto and value == "auto") or (isinstance(value, int) and value >= 1):
        return value
    raise UserError(f"{key}={value} must be a whole number of at least 1{', or auto' if or_auto else ''}")
