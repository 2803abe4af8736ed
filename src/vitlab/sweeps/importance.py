"""Which keys made the difference in a search."""

from collections.abc import Sequence
from pathlib import Path

DATABASE, STUDY = "study.db", "search"  # of a search, in its directory
ENOUGH = 4  # finished trials


def address(folder: Path) -> str:
    """Of a search's study, as Optuna takes it."""
    return f"sqlite:///{(folder / DATABASE).absolute()}"


def importance_in(folders: Sequence[Path]) -> dict[str, float]:
    """Share of each key in what tells good trials from others (Watanabe et al. 2023, "PED-ANOVA").

    Empty where the one folder is not a search's, or too few trials are finished.
    """
    if len(folders) != 1 or not (folders[0] / DATABASE).exists():
        return {}
    import optuna  # half a second, not for each leaderboard
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name=STUDY, storage=address(folders[0]))
    if len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))) < ENOUGH:
        return {}
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
