"""Sweepers of vitlab's, for Hydra; see `launchers`."""

from collections.abc import Mapping
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.vitlab.launchers import SweepLauncher


class OptunaSweeper(Sweeper):
    """Searches instead of trying all.

    Args:
        n_trials: Jobs to make.
        sampler: Chooses the next trial.
        pruner: Says which trials are hopeless.
        params: Key -> what is chosen from.
        when: Override -> keys that are chosen only with it.
    """

    def __init__(
        self,
        n_trials: int,
        sampler: Any,
        pruner: Any,
        params: Mapping[str, Any] | None,
        when: Mapping[str, Mapping[str, Any]] | None,
    ) -> None:
        self.n_trials, self.sampler, self.pruner = n_trials, sampler, pruner
        self.params, self.when = params or {}, when or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from vitlab.errors import UserError
        from vitlab.sweeps.search import run_search
        from vitlab.sweeps.search_space import read_space
        from vitlab.sweeps.sweep import whole

        if not isinstance(self.launcher, SweepLauncher):
            raise UserError("a search needs a launcher of vitlab's: hydra/launcher=processes or submitit_slurm")
        n_trials = whole("hydra.sweeper.n_trials", self.n_trials)
        space = read_space(self.params, arguments, self.when)
        run_search(self.launcher.sweep(), self.launcher.engine(), space, n_trials, self.sampler, self.pruner)
