"""A search by Optuna: each trial is a job of the sweep, and what the trials reached decides on the next ones."""

import math

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from vitlab.config.ranges import mode_of
from vitlab.errors import UserError
from vitlab.files import shorten
from vitlab.sweeps.executors import Executor
from vitlab.sweeps.importance import STUDY, address
from vitlab.sweeps.job import Job
from vitlab.sweeps.search_space import SearchSpace
from vitlab.sweeps.sweep import Sweep, as_recorded, check_place, conduct, known_jobs
from vitlab.sweeps.sweep_file import FILE, sweep_lock

MADE_AGAIN = "made_again"  # numbers of failed trials


class Search:
    """The trials of a study as jobs.

    Those that a killed search left are gone on with first, failed ones of an earlier start are made again.
    """

    def __init__(self, sweep: Sweep, study: optuna.Study, space: SearchSpace, n_trials: int) -> None:
        self.sweep, self.study, self.space = sweep, study, space
        self.trials: dict[int, Trial] = {}
        self.jobs: list[Job] = [as_recorded(sweep.folder, row) for row in known_jobs(sweep.folder)]
        left = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        for trial in failed:
            if trial.number not in study.user_attrs.get(MADE_AGAIN, []):
                study.enqueue_trial(trial.params)
        study.set_user_attr(MADE_AGAIN, [trial.number for trial in failed])
        self.to_ask = n_trials - sum(trial.state.is_finished() for trial in study.trials) + len(failed) - len(left)
        self.left = [self._job(Trial(study, trial._trial_id)) for trial in left]

    def _job(self, trial: Trial) -> Job:
        job = self.sweep.job(trial.number, self.space.suggest(trial), self.space.keys)
        self.trials[job.number] = trial
        self.jobs = [*(other for other in self.jobs if other.number != job.number), job]
        check_place(self.sweep.folder, self.jobs)
        return job

    def next(self) -> Job | None:
        while self.left:
            job = self.left.pop(0)
            if job.stage() != "finished":
                return job
            job.status = "done"  # it was killed before the study was told
            self.ended(job)
        while self.to_ask > 0:
            self.to_ask -= 1
            trial = self.study.ask()
            overrides = self.space.suggest(trial)
            known = self._known(trial)
            if known is None:
                return self._job(trial)
            self.study.tell(trial, known.value, state=known.state)  # the same overrides, the same run
            print(f"trial {trial.number} is trial {known.number} again: {' '.join(overrides)}")
        return None

    def _known(self, trial: Trial) -> FrozenTrial | None:
        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return next((other for other in ended if other.params == trial.params), None)

    def is_hopeless(self, job: Job) -> bool:
        trial = self.trials[job.number]
        known = self.study._storage.get_trial(trial._trial_id).intermediate_values
        for row in job.epoch_rows():
            if job.monitor in row and int(row["epoch"]) not in known:
                trial.report(row[job.monitor], int(row["epoch"]))
        return trial.should_prune()

    def ended(self, job: Job) -> None:
        """Tells the study; not of an interrupted job, whose trial goes on with the search."""
        if job.status == "done":
            value = job.final_metrics().get(job.monitor, math.nan)
            told = {"values": value} if math.isfinite(value) else {"state": TrialState.FAIL}
            self.study.tell(job.number, **told)
        elif job.status == "pruned":
            self.study.tell(job.number, state=TrialState.PRUNED)
        elif job.status == "failed":
            self.study.tell(job.number, state=TrialState.FAIL)


def run_search(
    sweep: Sweep, engine: Executor, space: SearchSpace, n_trials: int, sampler: BaseSampler, pruner: BasePruner
) -> None:
    """Makes trials until there are `n_trials`, those of an earlier start of the same search included.

    The study is in `study.db` of the sweep's folder.

    Raises:
        UserError: another process runs the search, its folder holds another one, or nothing is validated.
        KeyboardInterrupt, TerminatedError: it was stopped.
        SystemExit: 1, when a trial failed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with sweep_lock(sweep.folder):
        config = sweep.compose([*space.fixed, *space.first()])
        if config.data.val_size == 0 or config.trainer.limit_val_batches == 0:
            raise UserError(
                "a search needs validation images: data.val_size and trainer.limit_val_batches must not be 0"
            )
        mode = mode_of(config.checkpoint.monitor, config.checkpoint.get("mode"))
        study = optuna.create_study(
            storage=address(sweep.folder),
            study_name=STUDY,
            direction="maximize" if mode == "max" else "minimize",
            sampler=sampler,
            pruner=pruner,
            load_if_exists=True,
        )
        _settle_what_is_searched(sweep, study, space, f"{config.checkpoint.monitor} {mode}")
        if study.get_trials(deepcopy=False):
            sampler.reseed_rng()  # or it would draw the first trials again
        search = Search(sweep, study, space, n_trials)
        conduct(sweep, engine, search, f"a search of {n_trials} trials by {config.checkpoint.monitor}")


def _settle_what_is_searched(sweep: Sweep, study: optuna.Study, space: SearchSpace, goal: str) -> None:
    """Writes into a new study what it is about; refuses one that is about something else.

    Raises:
        UserError: naming what differs.
    """
    about = {"space": space.describe(), "overrides": sorted(space.fixed), "monitor": goal}
    if not study.get_trials(deepcopy=False) and not study.user_attrs:
        if (sweep.folder / FILE).exists():
            raise UserError(
                f"{shorten(sweep.folder)} holds a sweep that is no search: choose another hydra.sweep.dir=..."
            )
        for name, value in about.items():
            study.set_user_attr(name, value)
    different = [name for name, value in about.items() if study.user_attrs.get(name) != value]
    if different:
        was, now = study.user_attrs.get(different[0]), about[different[0]]
        raise UserError(
            f"{shorten(sweep.folder)} holds another search, whose {different[0]} was {was}, not {now}: "
            "choose another directory with hydra.sweep.dir=..."
        )
