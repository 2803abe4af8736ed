"""Runs of experiments on record, a line each in a CSV file."""

import csv
import io
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vitlab.errors import UserError
from vitlab.files import shorten, write_text
from vitlab.leaderboard.ranking import test_metric
from vitlab.leaderboard.results import Result

FREE = {"experiment", "data", "data.root", "data.cache_dir", "seed", "name", "logger"}  # what a claim leaves to one
OF_ONE_RUN = {"seed", "name", "logger"}


@dataclass(frozen=True)
class Run:
    """A finished run of an experiment.

    Attributes:
        experiment: File in `conf/experiment`, without its ending.
        data: What the images are called.
        machine: What it ran on, with its precision.
        commit: Of the code, 7 digits.
        command: What was typed, without what is of this run alone.
        seed: Of the run.
        accuracy: On the test images, as a fraction.
        validation: The same on the validation images; None where there are none.
        epochs: Passes through the training images, the last one perhaps in part.
        seconds: Of wall time, preflight and evaluation included; Python's imports come before.
        parameters: Of the network.
        started: ISO 8601.
    """

    experiment: str
    data: str
    machine: str
    commit: str
    command: str
    seed: int
    accuracy: float
    validation: float | None
    epochs: float
    seconds: float
    parameters: int
    started: str


def recorded(result: Result, data: str | None) -> Run:
    """What goes on record of a run.

    Args:
        result: The run.
        data: What its images are called; None: by their source.

    Raises:
        UserError: it can't stand for an experiment, and why.
    """
    where, settings, manifest = shorten(result.path), result.settings, result.manifest
    experiment = result.choices.get("experiment")
    metric = test_metric(str(settings.get("checkpoint.monitor")))
    if not result.finished:
        raise UserError(f"{where} is {result.status}: only finished runs go on record")
    if not experiment:
        raise UserError(f"{where} is no run of an experiment: train with experiment=<one of conf/experiment>")
    changes = [override for override in result.overrides if _key(override) not in FREE]
    if changes:
        raise UserError(f"{where} is not its experiment as it stands: {shlex.join(changes)}")
    if metric not in result.metrics:
        raise UserError(f"{where} was not tested")
    if manifest.get("resumed"):
        raise UserError(f"{where} was interrupted and went on: only what one command did goes on record")
    if not manifest["git"]["revision"] or manifest["git"]["dirty"]:
        raise UserError(f"{where} is of code that no commit has: commit first, then train")
    batches = manifest["data"]["train"]["images"] // int(settings["data.batch_size"])
    steps = -(-batches // int(settings["trainer.accumulate_grad_batches"]))  # an epoch's
    return Run(
        experiment=experiment,
        data=data or _source(settings),
        machine=f"{_machine(manifest['hardware'], settings)}, {settings['trainer.precision']}",
        commit=manifest["git"]["revision"][:7],
        command=_command(result.overrides),
        seed=result.seed,
        accuracy=result.metrics[metric],
        validation=result.metrics.get(metric.replace("test", "val")),
        epochs=round(result.epochs[-1]["step"] / steps, 2),
        seconds=result.seconds,
        parameters=int(manifest["parameters"]),
        started=str(manifest["started"]),
    )


def read_record(file: Path) -> list[Run]:
    """All runs on record; none where there is no file.

    Raises:
        UserError: the file does not hold what `write_record` writes.
    """
    if not file.exists():
        return []
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            return [_typed(line) for line in csv.DictReader(lines)]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is no record of runs: {error!r}") from error


def merged(known: Iterable[Run], runs: Iterable[Run]) -> list[Run]:
    """All of both, each once, in the order of the record."""
    found = {(run.experiment, run.started, run.seed): run for run in [*known, *runs]}
    return sorted(found.values(), key=lambda run: (run.experiment, run.started))


def write_record(file: Path, runs: Iterable[Run]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Run)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(run) for run in runs)
    write_text(file, text.getvalue())


def claims(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in their seeds alone; of each experiment, data and machine the group with the most seeds, of
    equal ones the newest."""
    groups: dict[tuple[str, ...], dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: run.started):  # of a seed the newest stays
        groups.setdefault((run.experiment, run.data, run.machine, run.commit, run.command), {})[run.seed] = run
    best: dict[tuple[str, ...], list[Run]] = {}
    for key, seeds in sorted(groups.items(), key=lambda item: max(run.started for run in item[1].values())):
        if len(seeds) >= len(best.get(key[:3], ())):
            best[key[:3]] = [seeds[seed] for seed in sorted(seeds)]
    return list(best.values())


def _typed(line: dict[str, Any]) -> Run:
    return Run(
        **{
            **line,
            "seed": int(line["seed"]),
            "parameters": int(line["parameters"]),
            "validation": float(line["validation"]) if line["validation"] else None,
            **{name: float(line[name]) for name in ("accuracy", "epochs", "seconds")},
        }
    )


def _source(settings: Any) -> str:
    name = str(settings["data._target_"]).rpartition(".")[2]
    if name == "CIFAR10DataModule":
        return "CIFAR-10"
    return Path(str(settings["data.root"])).name if "data.root" in settings else "drawn shapes"


def _machine(hardware: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    gpus, devices = hardware["gpus"], settings["trainer.devices"]
    if not gpus or settings["trainer.accelerator"] == "cpu":
        cores = hardware["torch_threads"]
        return f"{hardware['cpu']}, {cores} {'core' if cores == 1 else 'cores'}"
    count = len(gpus) if devices in ("auto", -1) else len(devices) if isinstance(devices, list) else int(devices)
    return f"{count} x {gpus[0]}" if count > 1 else str(gpus[0])


def _command(overrides: Sequence[str]) -> str:
    kept = sorted((override for override in overrides if _key(override) not in OF_ONE_RUN), key=_key)
    return shlex.join(["python", "train.py", *sorted(kept, key=lambda override: _key(override) != "experiment")])


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
