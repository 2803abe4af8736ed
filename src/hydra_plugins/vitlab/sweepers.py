"""The Optuna sweeper for Hydra; see `launchers`."""

import math
from collections.abc import Mapping
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.vitlab.launchers import SweepLauncher, check_count
from vitlab.config.ranges import TIME
from vitlab.errors import UserError


class OptunaSweeper(Sweeper):
    """Searches for the best settings instead of running all combinations.

    Args:
        n_trials: Number of jobs.
        max_time: None, or DD:HH:MM:SS, the time of the search: no job starts that would end later.
        sampler: Chooses the next trial.
        pruner: Decides which trials end early.
        params: Key -> values to choose from.
        when: Override -> keys that are chosen only with this override.
    """

    def __init__(
        self,
        n_trials: int,
        max_time: str | None,
        sampler: Any,
        pruner: Any,
        params: Mapping[str, Any] | None,
        when: Mapping[str, Mapping[str, Any]] | None,
    ) -> None:
        self.n_trials, self.max_time, self.sampler, self.pruner = n_trials, max_time, sampler, pruner
        self.params, self.when = params or {}, when or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from vitlab.sweeps.search import read_space, run_search

        if not isinstance(self.launcher, SweepLauncher):
            raise UserError("a search needs one of vitlab's launchers: hydra/launcher=processes or submitit_slurm")
        n_trials = check_count("hydra.sweeper.n_trials", self.n_trials)
        seconds = check_duration("hydra.sweeper.max_time", self.max_time)
        space = read_space(self.params, arguments, self.when)
        sweep, executor = self.launcher.sweep(), self.launcher.executor()
        run_search(sweep, executor, space, n_trials, self.sampler, self.pruner, seconds)


def check_duration(key: str, value: Any) -> float:
    """Return the seconds of a duration DD:HH:MM:SS; infinity for None.

    Raises:
        UserError: It is 0, or written in another way.
    """
    if value is None:
        return math.inf
    if not TIME.fullmatch(str(value)):
        raise UserError(f"{key}={value} must be DD:HH:MM:SS above 0, or null")
    days, hours, minutes, seconds = map(int, str(value).split(":"))
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
