"""Runs of experiments on record, a line each in a CSV file."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vitlab.errors import UserError
from vitlab.files import shorten, write_text
from vitlab.sweeps.results import Result
from vitlab.sweeps.standings import test_metric

OWN_PLACE = re.compile(r"(seed|name|hydra\.run\.dir)=")  # what is typed for one run of several


@dataclass(frozen=True)
class Run:
    """A finished run of an experiment.

    Attributes:
        experiment: File in `conf/experiment`, without its ending.
        data: What the images are called.
        machine: What it ran on, with its precision.
        commit: Of the code, 7 digits.
        command: As it was typed, without seed and place.
        seed: Of the run.
        accuracy: On the test images, as a fraction.
        validation: The same on the validation images; None where there are none.
        epochs: Passes through the training images, the last one perhaps in part.
        seconds: From start to end, with start and evaluation.
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
    if metric not in result.metrics or settings.get("trainer.limit_test_batches") is not None:
        raise UserError(f"{where} was not tested on all test images")
    if not manifest["git"]["revision"] or manifest["git"]["dirty"]:
        raise UserError(f"{where} is of code that no commit has: commit first, then train")
    batches = manifest["data"]["train"]["images"] // int(settings["data.batch_size"])
    return Run(
        experiment=experiment,
        data=data or _source(settings),
        machine=f"{_machine(manifest['hardware'])}, {settings['trainer.precision']}",
        commit=manifest["git"]["revision"][:7],
        command=_command(result.overrides),
        seed=result.seed,
        accuracy=result.metrics[metric],
        validation=result.metrics.get(metric.replace("test", "val")),
        epochs=round(result.metrics["step"] * int(settings["trainer.accumulate_grad_batches"]) / batches, 2),
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
    """Runs that differ in their seeds alone, of each experiment, data and machine the newest such group."""
    newest: dict[tuple[str, str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.started):
        group = newest.setdefault((run.experiment, run.data, run.machine), [])
        if group and (group[0].commit, group[0].command) != (run.commit, run.command):
            group.clear()
        group[:] = [other for other in group if other.seed != run.seed] + [run]
    return list(newest.values())


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


def _machine(hardware: Any) -> str:
    if hardware["gpus"]:
        count = len(hardware["gpus"])
        return f"{count} x {hardware['gpus'][0]}" if count > 1 else str(hardware["gpus"][0])
    return f"{hardware['torch_threads']} cores of {hardware['cpu']}"


def _command(overrides: Sequence[str]) -> str:
    return " ".join(["python train.py", *(override for override in overrides if not OWN_PLACE.match(override))])
