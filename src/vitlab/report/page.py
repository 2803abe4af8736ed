"""The page."""

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from html import escape
from math import log
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from vitlab.config.instantiate import trust
from vitlab.files import write_text
from vitlab.plots.curves import CURVES, draw_curves
from vitlab.plots.io import never_failing, read_figures, render, save
from vitlab.report.headline import headline, key_table, outcome, results, what_was_run
from vitlab.report.html import code, in_columns, page, paragraph, png, section, table
from vitlab.report.recommendations import advice
from vitlab.report.run_summary import RunSummary, read_run_summary
from vitlab.runs.directory import RunDirectory
from vitlab.runs.manifest import entry_point

SECTIONS = {  # of figures, by what stands before the slash of their tag; others go by that word
    "curves": "Curves",
    "test": "On the test images",
    "val": "On the validation images",
    "learnt": "What the network learnt",
    "data": "What it was trained on",
    "plan": "The plan",
}

SHARPNESS = 1.5  # a figure's pixels by those of the page


@rank_zero_only
def write_report(run: RunDirectory) -> None:
    """Writes `report.html` into a run that has an epoch's metrics, or writes it anew; never fails."""
    with never_failing("report.html"):
        facts = read_run_summary(run)
        if facts.epochs:
            if facts.draws:
                with never_failing("the curves"):
                    _draw_curves(facts, run.path / "figures" / "20_curves.png")
            write_text(run.path / "report.html", _page(facts, run))


def _draw_curves(facts: RunSummary, file: Path) -> None:
    best = facts.best
    passed, kept = [facts.passed(row) for row in facts.epochs], facts.passed(best) if best else None
    image = render(lambda: draw_curves(facts.epochs, passed, kept, len(facts.classes)), CURVES.title)
    said = f"Guessing has a loss of ln({len(facts.classes)}) = {log(len(facts.classes)):.3f} nats. {_two_kinds(facts)}"
    save(image, file, CURVES.add(said))


def _two_kinds(facts: RunSummary) -> str:
    """Why the lines of training and validation can't be compared as they stand."""
    smoothed = " and their loss has label smoothing" if facts.config.label_smoothing else ""
    right = " (right is then the class with the larger share)" if "mixed" in facts.as_trained else ""
    return (
        f"Training images are {facts.as_trained}{right}{smoothed}: the two lines are not of one kind, and the training "
        "line may lie on the worse side."
    )


def _page(facts: RunSummary, run: RunDirectory) -> str:
    started = str(facts.manifest.get("started", ""))[:16].replace("T", " ")
    return page(
        f"{facts.config.name} on {facts.data_set}: {headline(facts)}",
        f"a run of vitlab, {facts.manifest.get('status')}, begun {started}",
        section("What was run", paragraph(what_was_run(facts)), key_table(facts)),
        section("What came out", *map(paragraph, outcome(facts)), results(facts)),
        section("What the numbers say, and what to try next", _advice(facts)),
        *_figures(facts, run.path),
        section("The run in detail", *_setting(facts, run.path)),
        section("How to do it again", *_again(facts, run.path)),
    )


def _advice(facts: RunSummary) -> str:
    items = [
        f"<li>{escape(said)}{f' <b>To try:</b> {escape(attempt)}' if attempt else ''}</li>"
        for said, attempt in advice(facts)
    ]
    return f"<ul>{''.join(items)}</ul>"


def _figures(facts: RunSummary, run: Path) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for figure in read_figures(run):
        image = png(figure.file.read_bytes(), figure.caption, width=round(figure.width / SHARPNESS))
        group = figure.tag.partition("/")[0]
        if group != "test" or facts.final:  # else they are of an earlier end, behind which the run went on
            groups.setdefault(group, []).append(image)
    for group in sorted(groups, key=lambda name: [*SECTIONS, name].index(name)):
        shown = groups[group]
        yield section(SECTIONS.get(group, group), in_columns(*shown) if len(shown) > 1 else shown[0])


def _checks(run: Path) -> Iterator[tuple[str, str]]:
    """What the checks before training came to."""
    file = run / "preflight.json"
    if file.exists():
        counts = Counter(check["status"] for check in json.loads(file.read_text(encoding="utf-8"))["checks"])
        yield "checks before training", ", ".join(f"{count} {status}" for status, count in counts.items())


def _setting(facts: RunSummary, run: Path) -> Iterator[str]:
    manifest, config = facts.manifest, facts.config
    hardware, versions, git = (manifest.get(key) or {} for key in ("hardware", "versions", "git"))
    gpus = ", ".join(hardware.get("gpus") or []) or "none"
    dirty = ", with changes that are not committed" if git.get("dirty") else ""
    seconds = facts.epochs[-1]["seconds"]
    time = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    speed = [row["images_per_second"] for row in facts.epochs if "images_per_second" in row]
    rows = [
        ("command", str(manifest.get("command"))),
        (
            "time in training",
            f"{time} with validation"
            + (f"; {sorted(speed)[len(speed) // 2]:,.0f} images a second while it trains" if speed else ""),
        ),
        ("images", ", ".join(f"{facts.images(split):,} {split}" for split in ("train", "val", "test"))),
        ("data", " in ".join([facts.data_set, *([str(config.data.root)] if "root" in config.data else [])])),
        ("processor", f"{hardware.get('cpu')}, {hardware.get('cpu_cores')} cores"),
        ("GPUs", gpus),
        *_checks(run),
        ("code", f"revision {git.get('revision')}{dirty}" if git.get("revision") else "not from a checkout"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    for again in manifest.get("resumed", []):
        rows.append(
            (
                "resumed",
                f"{again['time'][:16].replace('T', ' ')}, from epoch {again['epoch'] + 1}, step {again['step']:,}",
            )
        )
    yield table(("what", "as it was"), rows)
    for group, heading in (("model", "The network"), ("optimizer", "The optimizer"), ("augment", "Augmentation")):
        yield f"<details><summary>{heading}</summary>{code(_yaml(config[group]))}</details>"
    yield f"<details><summary>The whole config</summary>{code(_yaml(config))}</details>"


def _yaml(node: Any) -> str:
    return OmegaConf.to_yaml(node)


def _again(facts: RunSummary, run: Path) -> Iterator[str]:
    folder, git = Path(facts.manifest.get("folder") or Path.cwd()), facts.manifest.get("git") or {}
    path, trusted = os.path.relpath(run, folder), " ".join(["", *trust(facts.config)])
    resume, reproduce, kept = (shlex.quote(f"{verb}={path}") + trusted for verb in ("resume", "reproduce", "run"))
    command = str(facts.manifest.get("command", "python train.py"))
    train, evaluate = (entry_point(name, command, folder) for name in ("train.py", "evaluate.py"))
    yield paragraph(
        f"From the folder in which the run was started ({folder}), with vitlab's code at the "
        "run's revision and installed from there (pip install -e .):"
    )
    if git.get("dirty"):
        yield paragraph("The code had changes that are in no revision: they are missing then.")
    code_folder = shlex.quote(str(Path(shlex.split(train)[0]).parent))
    checkout = [f"git -C {code_folder} checkout {git['revision']}"] if git.get("revision") else []
    if not facts.final:
        yield paragraph("The run can go on; the first line does that.")
        checkout = [f"python {train} {resume}", *checkout]
    yield code("\n".join([*checkout, f"python {train} {reproduce}", f"python {evaluate} {kept}"]))
    yield paragraph(
        "reproduce= trains again in a new directory below outputs and prints the metrics of both side by side; "
        f"{_likeness(facts)}. evaluate.py tests the weights that were kept. Weights are in checkpoints/, the log is "
        "run.log."
    )


def _likeness(facts: RunSummary) -> str:
    """How near a repetition comes."""
    if facts.by_clock:
        return "they will be near to each other, no more: the clock ends the run, and no two take the same steps in it"
    same = "on the same machine with the same versions they are the same to the last bit"
    on_gpu = bool((facts.manifest.get("hardware") or {}).get("gpus"))
    exact = OmegaConf.select(facts.config, "trainer.deterministic")
    return f"{same}, on a GPU where trainer.deterministic=true" if on_gpu and not exact else same
