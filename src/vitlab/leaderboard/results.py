"""What run directories and sweeps on disk say of the runs in them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vitlab.errors import UserError
from vitlab.runs.directory import RunDirectory
from vitlab.runs.rebase import rebase_paths
from vitlab.sweeps.job import SET_ASIDE
from vitlab.sweeps.sweep_file import FILE, read_record

# libyaml's where it is there: a leaderboard reads three files a run, and reads them ten times as fast with it.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
FAILED = re.compile(r"^[\w.]*(Error|Exception|Interrupt|Exit)\b.*")  # the last line of a traceback


@dataclass(frozen=True)
class Result:
    """What is known of a run.

    Attributes:
        path: Its directory; of a job that made none, where it would be.
        status: Of its manifest, or of its sweep's `sweep.json`: finished, running, failed, interrupted, pruned ...
        reason: Why it did not finish, where that is known.
        overrides: What was typed for it.
        settings: Its resolved config, flat (`optimizer.lr`), lists whole; the run's own directory is cut from paths.
        choices: The chosen option of each config group.
        derived: Settings that take their value from another one or, being null when composed, from the images.
        metrics: The final ones, as in `metrics.json`; none where the run is not finished.
        epochs: The rows of `metrics.csv`.
        manifest: As in `manifest.json`.
    """

    path: Path
    status: str
    reason: str = ""
    overrides: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, str | None] = field(default_factory=dict)
    derived: frozenset[str] = frozenset()
    metrics: Mapping[str, float] = field(default_factory=dict)
    epochs: Sequence[Mapping[str, float]] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @property
    def seconds(self) -> float:
        """From start to end; a resumed run's training before counts, its tests and start do not."""
        return max(self.metrics.get("seconds", 0.0), *(row.get("seconds", 0.0) for row in self.epochs[-1:]), 0.0)

    @property
    def log(self) -> Path | None:
        """`run.log`, or another log that lies in its directory."""
        logs = sorted(self.path.glob("*.log"), key=lambda file: file.name != "run.log")
        return logs[0] if logs else None


def read_results(folders: Iterable[Path]) -> list[Result]:
    """All runs and jobs of sweeps at or below the folders, in the order of their paths, numbers as numbers.

    Raises:
        UserError: a folder does not exist, or there is not one run in all of them.
    """
    folders = list(folders)
    jobs: dict[Path, Mapping[str, Any]] = {}
    runs: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist; name a sweep's directory, or one with runs in it")
        jobs |= _jobs(folder.resolve())
        found = [file.parent for file in folder.resolve().rglob("manifest.json")]
        runs |= {run for run in found if SET_ASIDE not in run.relative_to(folder.resolve()).parts}
    if not runs | set(jobs):
        raise UserError(f"there is no run in {', '.join(map(str, folders))}: nothing there has a manifest.json")
    return [read_result(path, jobs.get(path, {})) for path in sorted(runs | set(jobs), key=_naturally)]


def read_result(path: Path, job: Mapping[str, Any] | None = None) -> Result:
    """A run by what it left; by its entry in `sweep.json` where that knows more."""
    job = job or {}
    run = RunDirectory(path)
    hydra = path / ".hydra"
    try:
        manifest = run.manifest()
        metrics = run.final_metrics()
        status = _status(manifest, job, bool(metrics))
        config = _yaml(path / "config.yaml", {})
        if status == "finished" and "seed" not in config:
            raise ValueError(f"{path / 'config.yaml'} has no seed")
        choices = _yaml(hydra / "hydra.yaml", {}).get("hydra", {}).get("runtime", {}).get("choices", {})
        return Result(
            path=path,
            status=status,
            reason="" if status == "finished" else str(job.get("reason") or _last_error(path)),
            overrides=_yaml(hydra / "overrides.yaml", job.get("overrides", [])),
            settings=flat(rebase_paths(config, str(config.get("run_dir")), "")),
            choices={group: option for group, option in choices.items() if "/" not in group},
            derived=frozenset(
                k for k, v in flat(_yaml(hydra / "config.yaml", {})).items() if v is None or "${" in str(v)
            ),
            metrics={name: float(value) for name, value in metrics.items()} if status == "finished" else {},
            epochs=run.epoch_rows(),
            manifest=manifest,
        )
    except (UserError, OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        return Result(path, "unreadable", " ".join(str(error).split()), job.get("overrides", ()))


def flat(node: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`{"optimizer.lr": 0.001}` of `{"optimizer": {"lr": 0.001}}`."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        inner = f"{path}.{key}" if path else str(key)
        found |= flat(value, inner) if isinstance(value, Mapping) else {inner: value}
    return found


def _jobs(folder: Path) -> dict[Path, Mapping[str, Any]]:
    """The entries of each `sweep.json` at or below a folder, by the job's directory."""
    records = {file.parent: read_record(file.parent) for file in folder.rglob(FILE)}
    return {sweep / entry["folder"]: entry for sweep, record in records.items() for entry in record["jobs"]}


def _status(manifest: Mapping[str, Any], job: Mapping[str, Any], has_metrics: bool) -> str:
    told = {"done": "finished"}.get(str(job.get("status")), job.get("status"))
    status = manifest.get("status")
    if status == "finished" and has_metrics and told != "pruned":
        return "finished"
    if told and told != "finished":
        return str(told)
    return str(status) if status and status != "finished" else "failed"


def _last_error(path: Path) -> str:
    log = Result(path, "").log
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log else []
    return next((match[0] for line in reversed(lines) if (match := FAILED.match(line))), "")


def _yaml(file: Path, default: Any) -> Any:
    content = yaml.load(file.read_text(encoding="utf-8"), LOADER) if file.exists() else None
    if content is not None and type(content) is not type(default):
        raise ValueError(f"{file} does not hold what a run writes there")
    return content or default


def _naturally(path: Path) -> list[tuple[bool, int, str]]:
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in path.parts]
