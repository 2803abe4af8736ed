"""Launchers of vitlab's, for Hydra, which looks for them in this namespace alone and imports them at every start."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from vitlab.sweeps.executors import Executor
    from vitlab.sweeps.sweep import Sweep


class SweepLauncher(Launcher):
    """Hands a sweep over to `vitlab.sweeps`: a process of its own for each job."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from vitlab.sweeps.sweep import run_grid

        run_grid(self.sweep(), self.engine(), job_overrides)
        return [JobReturn(overrides=list(o), status=JobStatus.COMPLETED, _return_value=None) for o in job_overrides]

    def sweep(self) -> "Sweep":
        """The sweep that was typed."""
        from vitlab.sweeps.sweep import Sweep

        return Sweep(Path(self.config.hydra.sweep.dir).absolute(), self.config.hydra, self._compose)

    def engine(self) -> "Executor":
        """Where the jobs' processes run."""
        raise NotImplementedError

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        OmegaConf.set_readonly(config.hydra, False)  # the number of the job is still to come
        OmegaConf.set_struct(config.hydra, False)
        return config


class ProcessLauncher(SweepLauncher):
    """Processes on this machine.

    Args:
        jobs: How many at a time, or "auto".
    """

    def __init__(self, jobs: int | str) -> None:
        self.jobs = jobs

    def engine(self) -> "Executor":
        from vitlab.sweeps.executors import LocalExecutor, visible_gpus
        from vitlab.sweeps.sweep import cores, whole

        jobs = whole("hydra.launcher.jobs", self.jobs, or_auto=True)
        gpus = [] if self.config.trainer.accelerator == "cpu" else visible_gpus()
        return LocalExecutor(jobs, gpus, cores())


class SubmititLauncher(SweepLauncher):
    """Jobs of SLURM's, or an imitation of them on this machine.

    Args:
        cluster: "slurm" or "local".
        jobs: How many may be in the queue or run at a time, or "auto": all.
        tasks_per_node: Processes a machine.
        **parameters: Of submitit's executor.
    """

    def __init__(self, cluster: str, jobs: int | str, tasks_per_node: int | None, **parameters: Any) -> None:
        self.cluster, self.jobs, self.tasks_per_node, self.parameters = cluster, jobs, tasks_per_node, parameters

    def engine(self) -> "Executor":
        try:
            from vitlab.sweeps.submitit_executor import SubmititExecutor
        except ImportError as error:
            from vitlab.errors import UserError

            raise UserError(
                f"hydra/launcher=submitit_{self.cluster} needs submitit: pip install -e '.[slurm]'"
            ) from error
        from vitlab.sweeps.sweep import whole

        folder = Path(self.config.hydra.sweep.dir) / "submitit"
        jobs = whole("hydra.launcher.jobs", self.jobs, or_auto=True)
        return SubmititExecutor(folder, self.cluster, jobs, self.tasks_per_node, self.parameters)
