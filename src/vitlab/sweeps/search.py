"""A search by Optuna: each trial is a job of the sweep, and what the trials reached decides on the next ones."""

import json
import math

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from vitlab.sweeps.engines import Engine
from vitlab.sweeps.jobs import Job
from vitlab.sweeps.record import alone_in_sweep
from vitlab.sweeps.search_space import SearchSpace
from vitlab.sweeps.sweep import Sweep, as_recorded, conduct, known_jobs

DATABASE = "study.db"
ENOUGH_FOR_IMPORTANCE = 4  # finished trials


class Search:
    """The trials of a study as jobs; those that a killed search left are gone on with first."""

    def __init__(self, sweep: Sweep, study: optuna.Study, space: SearchSpace, n_trials: int) -> None:
        self.sweep, self.study, self.space, self.n_trials = sweep, study, space, n_trials
        self.trials: dict[int, Trial] = {}
        self.jobs: list[Job] = [as_recorded(sweep.folder, row) for row in known_jobs(sweep.folder)]
        left = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.left = [self._job(Trial(study, trial._trial_id)) for trial in left]

    def _job(self, trial: Trial) -> Job:
        job = self.sweep.job(trial.number, self.space.suggest(trial), self.space.keys)
        self.trials[job.number] = trial
        self.jobs = [*(other for other in self.jobs if other.number != job.number), job]
        return job

    def next(self) -> Job | None:
        while self.left:
            job = self.left.pop(0)
            if job.stage() != "finished":
                return job
            job.status = "done"  # it was killed before the study was told
            self.ended(job)
        if len(self.study.get_trials(deepcopy=False)) >= self.n_trials:
            return None
        return self._job(self.study.ask())

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
            value = json.loads(job.run.metrics_file.read_text(encoding="utf-8"))[job.monitor]
            if math.isfinite(value):
                self.study.tell(job.number, value)
            else:
                self.study.tell(job.number, state=TrialState.FAIL)
        elif job.status == "pruned":
            self.study.tell(job.number, state=TrialState.PRUNED)
        elif job.status == "failed":
            self.study.tell(job.number, state=TrialState.FAIL)


def run_search(
    sweep: Sweep, engine: Engine, space: SearchSpace, n_trials: int, sampler: BaseSampler, pruner: BasePruner
) -> None:
    """Makes trials until there are `n_trials`, those of an earlier start of the same search included.

    The study is in `study.db` of the sweep's folder.

    Raises:
        As `run_grid`.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with alone_in_sweep(sweep.folder):
        config = sweep.compose(space.fixed)
        study = optuna.create_study(
            storage=f"sqlite:///{(sweep.folder / DATABASE).absolute()}",
            study_name="search",
            direction="maximize" if config.checkpoint.mode == "max" else "minimize",
            sampler=sampler,
            pruner=pruner,
            load_if_exists=True,
        )
        if study.get_trials(deepcopy=False):
            sampler.reseed_rng()  # or it would draw the first trials again
        search = Search(sweep, study, space, n_trials)
        what = f"a search of {n_trials} trials by {config.checkpoint.monitor}"
        conduct(sweep, engine, search, what, lambda: importances(study))


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of each key in what tells good trials from others (Watanabe et al. 2023, "PED-ANOVA").

    Empty where too few trials are finished.
    """
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < ENOUGH_FOR_IMPORTANCE:
        return {}
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
