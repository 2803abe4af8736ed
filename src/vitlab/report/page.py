"""Write report.html: setup, results, suggestions and figures of a run on one page."""

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from math import log
from pathlib import Path
from statistics import median_high

from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from vitlab.files import write_text
from vitlab.plots.curves import CURVES, draw_curves
from vitlab.plots.io import never_failing, read_figures, render, save
from vitlab.report.html import bullets, code, in_columns, page, paragraph, png, section, table
from vitlab.report.recommendations import recommend
from vitlab.report.run_summary import RunSummary, accuracy_interval, read_run_summary
from vitlab.runs.directory import RunDirectory
from vitlab.runs.hparams import KEY_SETTINGS
from vitlab.runs.manifest import entry_point
from vitlab.runs.trust import trust

SECTIONS = {  # of figures, by the first part of their tag; others have that part as their title
    "curves": "Training curves",
    "test": "Test images",
    "val": "Validation images",
    "learnt": "Learned filters, positions and attention",
    "data": "Training images",
    "plan": "Learning rate schedule",
}

SHARPNESS = 1.5  # pixels of a figure per pixel of the page


@rank_zero_only
def write_report(run: RunDirectory) -> None:
    """Write `report.html`, or write it again, once the run has an epoch's metrics; a failure is only a warning."""
    with never_failing("report.html"):
        summary = read_run_summary(run)
        if not summary.epochs:
            return
        if summary.setting("callbacks.figures.level") in ("light", "full"):
            with never_failing("the curves"):
                _draw_curves(summary, run.path / "figures" / "20_curves.png")
        started = str(summary.manifest.get("started", ""))[:16].replace("T", " ")
        content = page(
            f"{summary.config.name} on {summary.data_set}: {headline(summary)}",
            f"vitlab run, {summary.manifest.get('status')}, started {started}",
            section("Setup", paragraph(setup(summary)), key_settings(summary)),
            section("Results", *map(paragraph, results(summary)), results_table(summary)),
            section("Findings and suggestions", bullets(recommend(summary)) or paragraph("Nothing stands out.")),
            *_figures(summary, run.path),
            section("Details", *_details(summary, run.path)),
            section("Reproduce this run", *_commands(summary, run.path)),
        )
        write_text(run.path / "report.html", content)


def _draw_curves(summary: RunSummary, file: Path) -> None:
    best, count = summary.best, len(summary.classes)
    epochs, kept = [summary.epochs_at(row) for row in summary.epochs], summary.epochs_at(best) if best else None
    image = render(lambda: draw_curves(summary.epochs, epochs, kept, count), CURVES.title)
    # The reasons why the two lines can't be compared as they stand.
    smoothed = ", and their loss includes label smoothing" if summary.config.label_smoothing else ""
    mixed = " (correct is then the class with the larger fraction)" if "mixing" in summary.augmentations else ""
    context = (
        f"Chance has a loss of ln({count}) = {log(count):.3f} nats. Training images are {summary.training_images}"
        f"{mixed}{smoothed}, so the training line may be worse than the validation line."
    )
    save(image, file, CURVES.add(context))


def headline(summary: RunSummary) -> str:
    for split, name in (("test", "test"), ("val", "validation")):
        key = f"{split}/acc{summary.suffix}"
        accuracy = summary.final.get(key, (summary.best or {}).get(key))
        if accuracy is not None:
            return f"{accuracy:.2%} {name} accuracy"
    return f"{summary.epochs[-1]['train/acc']:.2%} training accuracy"


def setup(summary: RunSummary) -> str:
    """The model, its first weights, the classes and the training images in a sentence."""
    parameters, weights = summary.manifest.get("parameters"), summary.manifest.get("weights")
    size = f" with {parameters / 1e6:.2f} million parameters" if parameters else ""
    origin = f"starting from {weights['from']}" if weights else "from random weights"
    names = ", ".join(summary.classes[:10]) + (" ..." if len(summary.classes) > 10 else "")
    side, repeats = summary.config.data.image_size, summary.setting("data.repeated_augmentation") or 1
    repeated = f" (each epoch shows one in {repeats} of them, {repeats} times each)" if repeats > 1 else ""
    return (
        f"{summary.hparams['model']}{size}, trained {origin} to classify images into {len(summary.classes)} classes "
        f"({names}): {summary.length} on {summary.used('train'):,} images of {summary.data_set}{repeated}, at "
        f"{side} x {side} pixels."
    )


def key_settings(summary: RunSummary) -> str:
    rows = [
        (KEY_SETTINGS[path], value if isinstance(value, str) else f"{value:g}", path)
        for path, value in summary.hparams.items()
        if path not in ("model", "data")  # the setup names them
    ]
    decay = summary.setting("callbacks.ema.decay")
    if decay is not None:
        rows.append(("EMA decay of the weights", f"{decay:g}", "callbacks.ema.decay"))
    half = (len(rows) + 1) // 2
    return in_columns(*(table(("setting", "value", "key"), part) for part in (rows[:half], rows[half:])))


def results(summary: RunSummary) -> Iterator[str]:
    accuracy, best = summary.final.get(f"test/acc{summary.suffix}"), summary.best
    if accuracy is not None:
        count, all_images = summary.used("test"), summary.images("test")
        of_all = f" of the {all_images:,}" if count < all_images else ""
        yield (
            f"Test accuracy: {accuracy:.2%} (95% interval {accuracy_interval(accuracy, count)}), measured on {count:,}"
            f"{of_all} test images. They were used neither for training nor for selecting weights. The interval covers "
            "the choice of test images; another seed changes the result too."
        )
    if best and "val/acc" in best:
        validated = sum("val/acc" in row for row in summary.epochs)
        yield (
            f"Of {validated} validated epochs, epoch {summary.epochs_at(best):g} had the best "
            f"{summary.config.checkpoint.monitor} on {summary.used('val'):,} validation images: its weights were kept."
        )


def results_table(summary: RunSummary) -> str:
    values = {**(summary.best or {}), **summary.final}
    smoothed = ", with label smoothing" if summary.config.label_smoothing else ""
    splits = {"train": f"training ({summary.training_images}{smoothed})", "val": "validation", "test": "test"}
    rows = [
        (words + weights, f"{values[f'{split}/acc{suffix}']:.2%}", f"{values[f'{split}/loss{suffix}']:.4f}")
        for split, words in splits.items()
        for suffix, weights in (("", ""), ("_ema", ", EMA weights"))
        if f"{split}/acc{suffix}" in values
    ]
    count = len(summary.classes)
    rows.append((f"chance, {count} classes", f"{1 / count:.2%}", f"ln({count}) = {log(count):.4f}"))
    return table(("images", "accuracy", "loss (nats)"), rows)


def _figures(summary: RunSummary, run: Path) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for figure in read_figures(run):
        image = png(figure.file.read_bytes(), figure.caption, width=round(figure.width / SHARPNESS))
        group = figure.tag.partition("/")[0]
        if group != "test" or summary.final:  # else they are those of an earlier end, before the run was resumed
            groups.setdefault(group, []).append(image)
    for group in sorted(groups, key=lambda name: [*SECTIONS, name].index(name)):
        shown = groups[group]
        yield section(SECTIONS.get(group, group), in_columns(*shown) if len(shown) > 1 else shown[0])


def _details(summary: RunSummary, run: Path) -> Iterator[str]:
    manifest, config = summary.manifest, summary.config
    hardware, versions, git = (manifest.get(key) or {} for key in ("hardware", "versions", "git"))
    changed = ", with uncommitted changes" if git.get("dirty") else ""
    seconds = summary.epochs[-1]["seconds"]
    time = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    speeds = [row["images_per_second"] for row in summary.epochs if "images_per_second" in row]
    speed = f"; {median_high(speeds):,.0f} images per second while training" if speeds else ""
    root = f" in {config.data.root}" if "root" in config.data else ""
    rows = [
        ("command", str(manifest.get("command"))),
        ("training time", f"{time} including validation{speed}"),
        ("images", ", ".join(f"{summary.images(split):,} {split}" for split in ("train", "val", "test"))),
        ("data", f"{summary.data_set}{root}"),
        ("CPU", f"{hardware.get('cpu')}, {hardware.get('cpu_cores')} cores"),
        ("GPUs", ", ".join(hardware.get("gpus") or []) or "none"),
        ("code", f"revision {git['revision']}{changed}" if git.get("revision") else "not from a git checkout"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    preflight = run / "preflight.json"
    if preflight.exists():
        checks = Counter(check["status"] for check in json.loads(preflight.read_text(encoding="utf-8"))["checks"])
        rows.append(("preflight checks", ", ".join(f"{count} {status}" for status, count in checks.items())))
    for resumed in manifest.get("resumed", []):
        at = f"{resumed['time'][:16].replace('T', ' ')}, from epoch {resumed['epoch']}, step {resumed['step']:,}"
        rows.append(("resumed", at))
    yield table(("item", "value"), rows)
    parts = {
        "Model": config.model,
        "Optimizer": config.optimizer,
        "Augmentation": config.augment,
        "Full config": config,
    }
    for heading, part in parts.items():
        yield f"<details><summary>{heading}</summary>{code(OmegaConf.to_yaml(part))}</details>"


def _commands(summary: RunSummary, run: Path) -> Iterator[str]:
    folder, git = Path(summary.manifest.get("folder") or Path.cwd()), summary.manifest.get("git") or {}
    path, trusted = os.path.relpath(run, folder), " ".join(["", *trust(summary.config)])
    resume, reproduce, kept = (shlex.quote(f"{key}={path}") + trusted for key in ("resume", "reproduce", "run"))
    command = str(summary.manifest.get("command", "python train.py"))
    train, evaluate = (entry_point(name, command, folder) for name in ("train.py", "evaluate.py"))
    yield paragraph(
        f"Run these commands in the folder in which the run was started ({folder}), with vitlab installed from its "
        "checkout (pip install -e .):"
    )
    if git.get("dirty"):
        yield paragraph("The code had uncommitted changes, which the checkout does not contain.")
    code_folder = shlex.quote(str(Path(shlex.split(train)[0]).parent))
    lines = [f"git -C {code_folder} checkout {git['revision']}"] if git.get("revision") else []
    if not summary.final:
        yield paragraph("The first command resumes the run.")
        lines.insert(0, f"python {train} {resume}")
    yield code("\n".join([*lines, f"python {train} {reproduce}", f"python {evaluate} {kept}"]))
    exact = "on the same machine with the same versions they are bitwise equal"
    if summary.time_limited:
        exact = "they will be similar, not equal, because a time limit ends the run after a varying number of steps"
    elif (summary.manifest.get("hardware") or {}).get("gpus") and not summary.setting("trainer.deterministic"):
        exact += " (on a GPU only with trainer.deterministic=true)"
    yield paragraph(
        f"reproduce= trains again in a new directory and compares the metrics of both runs: {exact}. "
        "evaluate.py tests the kept weights. The weights are in checkpoints/, the log is run.log."
    )
