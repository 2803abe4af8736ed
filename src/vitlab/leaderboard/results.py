"""Read the runs to compare from run directories and sweeps on disk."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vitlab.config.check import GROUPS
from vitlab.errors import UserError
from vitlab.runs.directory import RunDirectory, rebase_paths
from vitlab.runs.hparams import flatten
from vitlab.runs.old_config import update_old_config
from vitlab.sweeps.sweep import EARLIER_ATTEMPTS, SWEEP_FILE, Job, recorded_jobs

# A leaderboard reads three YAML files per run; libyaml reads them ten times as fast.
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CLASS_WEIGHTS = "loss.class_weights"
ERROR_LINE = re.compile(r"^[\w.]*(Error|Exception|Interrupt|Exit)\b.*")  # the last line of a traceback


@dataclass(frozen=True)
class Result:
    """A run, finished or not."""

    path: Path  # its directory; of a job that made none, where it would be
    status: str  # from its manifest or its sweep: finished, running, failed, interrupted, pruned ...
    reason: str = ""  # why it did not finish, if known
    overrides: Sequence[str] = ()  # on the command line
    settings: Mapping[str, Any] = field(default_factory=dict)  # resolved config, flat; paths relative to its directory
    choices: Mapping[str, str | None] = field(default_factory=dict)  # config group -> chosen option
    derived: frozenset[str] = frozenset()  # settings that follow from others or, null when composed, from the images
    automatic: frozenset[str] = frozenset()  # those composed as `auto`, which the run decided
    metrics: Mapping[str, float] = field(default_factory=dict)  # those of `metrics.json`; empty if it is not finished
    epochs: Sequence[Mapping[str, float]] = ()  # rows of `metrics.csv`
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @property
    def fold(self) -> int | None:
        """The number of its fold in cross-validation; None without."""
        return int(self.settings["data.fold"]) if self.settings.get("data.folds") else None

    @property
    def repetition(self) -> tuple[int, int]:
        """Fold and seed: in these alone the runs of one row differ."""
        return self.fold or 0, self.seed

    @property
    def pairing(self) -> tuple[Any, ...]:
        """Equal for runs with the same seed and the same split of the images, which differ by their settings alone."""
        return self.settings.get("data.folds"), self.settings.get("data.split_seed"), *self.repetition

    @property
    def tags(self) -> list[str]:
        return list(self.manifest.get("tags") or [])

    @property
    def seconds(self) -> float:
        """Duration; of a resumed run, `metrics.json` only knows the last part, `metrics.csv` all of the training."""
        return max(self.metrics.get("seconds", 0.0), *(row.get("seconds", 0.0) for row in self.epochs[-1:]), 0.0)

    @property
    def log(self) -> Path | None:
        """Its `run.log`, or else another log in its directory."""
        logs = sorted(self.path.glob("*.log"), key=lambda file: file.name != "run.log")
        return logs[0] if logs else None


def read_results(folders: Iterable[Path]) -> list[Result]:
    """Read all runs and jobs of sweeps in the folders or below, in the natural order of their paths; UserError if
    there is none, or no such folder."""
    folders = list(folders)
    jobs: dict[Path, Job] = {}
    runs: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist; name the directory of a sweep, of a run, or one above them")
        folder = folder.resolve()
        sweeps = [file.parent for file in folder.rglob(SWEEP_FILE)]
        for sweep in sweeps:
            jobs |= {job.folder: job for job in recorded_jobs(sweep)}
        earlier = {sweep / EARLIER_ATTEMPTS for sweep in sweeps}
        found = [file.parent for file in folder.rglob("manifest.json")]
        runs |= {run for run in found if earlier.isdisjoint(run.parents)}
    if not runs and not jobs:
        raise UserError(f"there is no run in {', '.join(map(str, folders))}: found no manifest.json")
    by_number = sorted(runs | set(jobs), key=lambda path: [p.zfill(9) if p.isdigit() else p for p in path.parts])
    return [read_result(path, jobs.get(path)) for path in by_number]  # run 9 before run 10


def read_result(path: Path, job: Job | None = None) -> Result:
    """Read a run from its directory, and from its job in a sweep if that knows more."""
    run, hydra = RunDirectory(path), path / ".hydra"
    overrides, reason = (job.overrides, job.reason) if job else ([], "")
    try:
        manifest = run.manifest()
        metrics = run.final_metrics()
        status = _status(manifest, job, bool(metrics))
        config = update_old_config(_read_yaml(path / "config.yaml", {}))
        if status == "finished" and "seed" not in config:
            raise ValueError(f"{path / 'config.yaml'} has no seed")
        settings = flatten(rebase_paths(config, str(config.get("run_dir")), ""))
        composed = flatten(_read_yaml(hydra / "config.yaml", {}))
        if composed.get(CLASS_WEIGHTS) == "balanced":  # as chosen: the weights follow from the images
            settings[CLASS_WEIGHTS] = "balanced"
        choices = _read_yaml(hydra / "hydra.yaml", {}).get("hydra", {}).get("runtime", {}).get("choices", {})
        overrides = _read_yaml(hydra / "overrides.yaml", overrides)
        given = (override.partition("=") for override in overrides)
        choices |= {group: files for group, _, files in given if group in GROUPS and files.startswith("[")}
        return Result(
            path=path,
            status=status,
            reason="" if status == "finished" else reason or _last_error(path),
            overrides=overrides,
            settings={key: value for key, value in settings.items() if value != {}},
            choices={group: option for group, option in choices.items() if "/" not in group},
            derived=frozenset(key for key, value in composed.items() if value is None or "${" in str(value)),
            automatic=frozenset(key for key, value in composed.items() if value == "auto"),
            metrics={name: float(value) for name, value in metrics.items()} if status == "finished" else {},
            epochs=run.epoch_rows(),
            manifest=manifest,
        )
    except (UserError, OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        return Result(path, "unreadable", " ".join(str(error).split()), overrides)


def _status(manifest: Mapping[str, Any], job: Job | None, has_metrics: bool) -> str:
    """Combine what the manifest and the sweep know: a killed run's manifest still says that it is running."""
    status, in_sweep = manifest.get("status"), job.status if job else "done"
    if status == "finished" and has_metrics and in_sweep != "pruned":
        return "finished"
    if in_sweep != "done":
        return in_sweep
    return str(status) if status and status != "finished" else "failed"


def _last_error(path: Path) -> str:
    log = Result(path, "").log
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log else []
    return next((match[0] for line in reversed(lines) if (match := ERROR_LINE.match(line))), "")


def _read_yaml(file: Path, default: Any) -> Any:
    content = yaml.load(file.read_text(encoding="utf-8"), YAML_LOADER) if file.exists() else None
    if content is not None and type(content) is not type(default):
        raise ValueError(f"{file} has unexpected content")
    return content or default
