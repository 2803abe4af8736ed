"""Search hyperparameters with Optuna: each trial is a job of the sweep."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.trial import BaseTrial, Trial, TrialState

from vitlab.arguments.command import parse_overrides
from vitlab.errors import UserError
from vitlab.files import shorten
from vitlab.metrics import mode_of
from vitlab.runs.console import format_duration
from vitlab.sweeps.executors import Executor
from vitlab.sweeps.runner import JobSource, run_jobs
from vitlab.sweeps.sweep import (
    STUDY_FILE,
    SWEEP_FILE,
    Job,
    Sweep,
    check_job_folder,
    job_name,
    recorded_jobs,
    sweep_lock,
)
from vitlab.sweeps.sweep_guard import without_given

STUDY = "search"
MADE_AGAIN = "made_again"  # attribute of a study: numbers of the failed trials that were repeated
MIN_TRIALS = 4  # finished trials that an estimate of the importance needs


@dataclass(frozen=True)
class Parameter:
    """A key whose value each trial chooses."""

    key: str  # in the config
    values: FloatDistribution | IntDistribution | CategoricalDistribution
    condition: str = ""  # override that a trial must have to choose it; "": always

    @property
    def name(self) -> str:
        """Its name in the study, where a key can have other values under another condition."""
        return f"{self.key} with {self.condition}" if self.condition else self.key

    def suggest(self, trial: BaseTrial) -> str:
        """Return the override with the value that a trial chooses."""
        values = self.values
        if isinstance(values, FloatDistribution):
            return f"{self.key}={trial.suggest_float(self.name, values.low, values.high, log=values.log)!r}"
        if isinstance(values, IntDistribution):
            number = trial.suggest_int(self.name, values.low, values.high, step=values.step, log=values.log)
            return f"{self.key}={number}"
        return f"{self.key}={trial.suggest_categorical(self.name, values.choices)}"


@dataclass(frozen=True)
class SearchSpace:
    """The overrides that all trials share, and the parameters that each trial chooses."""

    fixed: Sequence[str]
    parameters: Sequence[Parameter]

    def suggest(self, trial: BaseTrial) -> list[str]:
        """Return the overrides of a trial; values that it chose before a restart stay."""
        overrides = list(self.fixed)
        for parameter in self.parameters:
            if not parameter.condition or _holds(parameter.condition, overrides):
                overrides.append(parameter.suggest(trial))
        return overrides


def _holds(condition: str, overrides: Sequence[str]) -> bool:
    """Whether one of the overrides sets the same key to the same value, however both are written."""
    parsed = parse_overrides([condition, *overrides])
    # In Python, 1 equals true.
    wanted, *settings = ((o.key_or_group, o.package, isinstance(o.value(), bool), o.value()) for o in parsed)
    return wanted in settings


def read_space(
    params: Mapping[str, object], given: Sequence[str], when: Mapping[str, Mapping[str, object]]
) -> SearchSpace:
    """Read `choice(a,b)`, `a,b`, `range(2,10,2)`, `interval(0.1,0.9)`, `int(interval(1,8))`, `tag(log,interval(...))`.

    `params` and `when` are those of `hydra.sweeper`; overrides that were `given` on the command line replace both.
    """
    overrides = parse_overrides([*(f"{key}={value}" for key, value in without_given(params, given).items()), *given])
    found = {override.get_key_element(): override for override in overrides}
    fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in found.items() if not o.is_sweep_override()]
    parameters = [_parameter(override) for override in found.values() if override.is_sweep_override()]
    if not parameters:
        raise UserError('a search needs a key with several values, e.g. "optimizer.lr=tag(log,interval(1e-4,1e-2))"')
    for condition, keys in when.items():
        dependent = parse_overrides([f"{key}={value}" for key, value in without_given(keys, given).items()])
        parameters += [_parameter(override, condition) for override in dependent]
    return SearchSpace(fixed, parameters)


def _parameter(override: Override, condition: str = "") -> Parameter:
    """Translate an override; the end of a range is excluded, as in Hydra."""
    key, sweep = override.get_key_element(), override.value()
    log = "log" in getattr(sweep, "tags", ())
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        if low is None or high is None or low >= high or (log and low <= 0):
            raise UserError(f"{override.input_line}: from {low} to {high} there is no interval to choose from")
        if isinstance(low, int) and isinstance(high, int):
            return Parameter(key, IntDistribution(low, high, log=log), condition)
        return Parameter(key, FloatDistribution(low, high, log=log), condition)
    several = override.is_sweep_override()
    values = list(override.sweep_string_iterator()) if several else [override.get_value_element_as_str()]
    if isinstance(sweep, RangeSweep) and isinstance(sweep.start, int) and isinstance(sweep.step, int):
        numbers = sorted(map(int, values))
        return Parameter(key, IntDistribution(numbers[0], numbers[-1], step=abs(sweep.step)), condition)
    return Parameter(key, CategoricalDistribution(values), condition)


class Search(JobSource):
    """The trials of a study as jobs: first those that a killed search left, then failed ones again, then new ones.

    A new one starts only if the longest so far would still end within `seconds` from now.
    """

    def __init__(
        self, sweep: Sweep, study: optuna.Study, space: SearchSpace, n_trials: int, seconds: float = math.inf
    ) -> None:
        super().__init__(recorded_jobs(sweep.folder))
        self.sweep, self.study, self.space = sweep, study, space
        self.deadline, self.longest = time.time() + seconds, 0.0
        self.trials: dict[int, Trial] = {}
        trials = study.get_trials(deepcopy=False)
        failed = [trial for trial in trials if trial.state == TrialState.FAIL]
        for trial in failed:
            if trial.number not in study.user_attrs.get(MADE_AGAIN, []):
                study.enqueue_trial(trial.params)
        study.set_user_attr(MADE_AGAIN, [trial.number for trial in failed])
        self.failed = failed
        ended = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        running = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
        self.to_ask = n_trials - ended - len(running)
        storage = open_storage(sweep.folder)
        study_id = storage.get_study_id_from_name(STUDY)
        ids = [storage.get_trial_id_from_study_id_trial_number(study_id, number) for number in running]
        self.left = [self._job(Trial(study, trial_id)) for trial_id in ids]

    def next(self) -> Job | None:
        while self.left:
            job = self.left.pop(0)
            if job.stage() != "finished":
                return job
            job.status = "done"  # the search was killed before it told the study
            self.record_end(job)
        while self.to_ask > 0 and time.time() + self.longest < self.deadline:
            self.to_ask -= 1
            trial = self.study.ask()
            overrides = self.space.suggest(trial)
            repeated = {other.number for other in self.failed if other.params == trial.params}
            self.jobs = [job for job in self.jobs if job.number not in repeated]  # they no longer count as failed
            ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
            equal = next((other for other in ended if other.params == trial.params), None)
            if equal is None:
                return self._job(trial)
            value = equal.value if equal.state == TrialState.COMPLETE else None  # Optuna takes none of a pruned trial
            self.study.tell(trial, value, state=equal.state)  # equal overrides give an equal run
            print(f"trial {trial.number} repeats trial {equal.number}, whose result it takes: {' '.join(overrides)}")
        return None

    def should_prune(self, job: Job) -> bool:
        trial = self.trials[job.number]
        reported = self.study.get_trials(deepcopy=False)[job.number].intermediate_values
        for row in job.epochs_so_far():
            step = int(row["epoch"]) - 1  # Optuna's pruners count from 0
            if job.monitor in row and step not in reported:
                trial.report(row[job.monitor], step)
        return trial.should_prune()

    def record_end(self, job: Job) -> None:
        """Tell the study the result. The trial of an interrupted job stays open until it is resumed."""
        if job.started:  # by this process
            self.longest = max(self.longest, time.time() - job.started)
        value = job.run.final_metrics().get(job.monitor, math.nan)
        if job.status == "done" and math.isfinite(value):
            self.study.tell(job.number, value)
        elif job.status == "pruned":
            self.study.tell(job.number, state=TrialState.PRUNED)
        elif job.status in ("done", "failed"):
            self.study.tell(job.number, state=TrialState.FAIL)

    def _job(self, trial: Trial) -> Job:
        job = self.sweep.job(trial.number, self.space.suggest(trial), self.space.fixed)
        self.trials[job.number] = trial
        self.jobs = [*(other for other in self.jobs if other.number != job.number), job]
        check_job_folder(self.sweep.folder, self.jobs)
        return job


def run_search(
    sweep: Sweep,
    executor: Executor,
    space: SearchSpace,
    n_trials: int,
    sampler: BaseSampler,
    pruner: BasePruner,
    seconds: float = math.inf,
) -> None:
    """Run trials until there are `n_trials`, with those of an earlier start of the same search, or until `seconds` are
    over; raise as `run_grid`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with sweep_lock(sweep.folder):
        config = sweep.compose(space.suggest(optuna.create_study().ask()))  # any trial's
        monitor = config.checkpoint.monitor
        if config.data.val_size == 0 or config.trainer.limit_val_batches == 0:
            raise UserError(
                "a search needs validation images: data.val_size and trainer.limit_val_batches must not be 0"
            )
        mode = mode_of(monitor, config.checkpoint.get("mode"))
        study = optuna.create_study(
            storage=open_storage(sweep.folder),
            study_name=STUDY,
            direction="maximize" if mode == "max" else "minimize",
            sampler=sampler,
            pruner=pruner,
            load_if_exists=True,
        )
        _check_same_search(sweep, study, space, f"{monitor} {mode}")
        if study.get_trials(deepcopy=False):
            sampler.reseed_rng()  # otherwise it would draw the first trials again
        search = Search(sweep, study, space, n_trials, seconds)
        for job in search.jobs:  # those of an earlier start know neither
            job.monitor, job.name = monitor, job_name(job.overrides, space.fixed)
        limit = f" in at most {format_duration(seconds)}" if seconds < math.inf else ""
        run_jobs(sweep, executor, search, f"a search of {n_trials} trials{limit} by {monitor}")


def _check_same_search(sweep: Sweep, study: optuna.Study, space: SearchSpace, goal: str) -> None:
    """Record in a new study what it searches; refuse an existing one that searches something else."""
    folder = shorten(sweep.folder)
    parameters = sorted(f"{parameter.name} {parameter.values}" for parameter in space.parameters)
    content = {"space": parameters, "overrides": sorted(space.fixed), "monitor": goal}
    if not study.get_trials(deepcopy=False) and not study.user_attrs:
        if (sweep.folder / SWEEP_FILE).exists():
            raise UserError(f"{folder} holds a sweep without a search: choose another hydra.sweep.dir=...")
        for name, value in content.items():
            study.set_user_attr(name, value)
    for name, value in content.items():
        before = study.user_attrs.get(name)
        if before != value:
            raise UserError(
                f"{folder} holds another search, whose {name} is {before}, not {value}: "
                "choose another directory with hydra.sweep.dir=..."
            )


def open_storage(folder: Path) -> RDBStorage:
    return RDBStorage(f"sqlite:///{(folder / STUDY_FILE).absolute()}")


def parameter_importance(folder: Path) -> dict[str, float]:
    """Return each parameter's fraction of the importance (Watanabe et al. 2023, "PED-ANOVA"), if enough is known."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name=STUDY, storage=open_storage(folder))
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < MIN_TRIALS:
        return {}
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
