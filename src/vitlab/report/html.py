"""Write report.html, a run on one page."""

from collections.abc import Iterator
from math import log
from pathlib import Path
from statistics import median_high
from typing import Any
from urllib.parse import quote

from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

from vitlab.arguments.entry_points import entry_point
from vitlab.files import IS_CLONE, ROOT, write_text
from vitlab.metrics import format_metric, further_metrics, metric_title
from vitlab.plots.curves import CURVES, draw_curves
from vitlab.plots.io import never_failing, read_figures, render, save
from vitlab.report.figure_layout import Block, PageFigure, arrange
from vitlab.report.page import data_uri, render_page
from vitlab.report.recommendations import recommend
from vitlab.report.run_summary import RunSummary, accuracy_interval, read_run_summary
from vitlab.runs.console import format_duration
from vitlab.runs.directory import RunDirectory
from vitlab.runs.hparams import KEY_SETTINGS
from vitlab.runs.trust import trust
from vitlab.system import quote_for_shell, relative_to

SECTIONS = {  # of figures, by the first part of their tag; others have that part as their title
    "data": "Training images and schedule",
    "plan": "Training images and schedule",
    "curves": "Training curves",
    "test": "Test images",
    "val": "Validation images",
    "learnt": "Learned filters, positions and attention",
}
FILES = {  # of the run directory, to which the page links
    "config.yaml": "config: every setting of the run",
    "manifest.json": "command, git revision, versions, hardware, data fingerprint, status",
    "preflight.json": "results of the checks before training",
    "metrics.csv": "metrics of each epoch",
    "metrics.json": "final metrics",
    "test_details.json": "recall, precision and F1 of each class; calibration",
    "confusion_test.csv": "confusion matrix of the test images, in images",
    "unreadable_images.txt": "image files that were left out, and why",
    "checkpoints/best.ckpt": "weights of the best epoch, with the config",
    "checkpoints/last.ckpt": "newest state, to resume from",
    "figures/": "all figures as PNG files",
    "profile/": "the slowest operations, and a trace",
    "run.log": "terminal output, warnings and tracebacks",
}
SHARPNESS = 1.5  # pixels of a figure per pixel of the page
MAX_ROWS = 20  # of a table of classes that is shown without a click


@rank_zero_only
def write_report(run: RunDirectory, config: DictConfig | None = None) -> None:
    """Write `report.html`, or write it again; a failure is only a warning. `config` is the run's, if at hand."""
    with never_failing("report.html"):
        summary = read_run_summary(run, config)
        if summary.epochs and summary.setting("callbacks.figures.level") in ("light", "full"):
            with never_failing("the curves"):
                _draw_curves(summary, run.path / "figures" / "20_curves.png")
        write_text(run.path / "report.html", render_report(summary, run.path))


def _draw_curves(summary: RunSummary, file: Path) -> None:
    count = len(summary.classes)
    epochs, kept = [summary.epochs_at(row) for row in summary.epochs], summary.epochs_at(summary.best)
    image = render(lambda: draw_curves(summary.epochs, epochs, kept, count), CURVES.title)
    # The reasons why the two lines can't be compared as they stand.
    smoothed = ", and their loss includes label smoothing" if summary.setting("loss.label_smoothing") else ""
    mixed = " (correct is then the class with the larger fraction)" if "mixing" in summary.augmentations else ""
    context = (
        f"Chance has a loss of ln({count}) = {log(count):.3f} nats. Training images are {summary.training_images}"
        f"{mixed}{smoothed}, so the training line may be worse than the validation line."
    )
    save(image, file, CURVES.add(context))


def render_report(run: RunSummary, path: Path) -> str:
    """Fill the page with the facts of a run, whose figures are in its directory `path`."""
    values = {**run.best, **run.final}
    unreadable = RunDirectory(path).unreadable_file
    speeds = [row["images_per_second"] for row in run.epochs if "images_per_second" in row]
    folder = Path(run.manifest.get("folder") or Path.cwd())
    return render_page(
        "report/report.html",
        title=_title(run, values),
        run=run,
        values=values,
        validated=sum("val/acc" in row for row in run.epochs),
        chance_loss=log(len(run.classes)),
        further=further_metrics(values),
        metric_title=metric_title,
        knn_images=_knn_images(run),
        classes=[_class_row(name, row) for name, row in run.details.get("per_class", {}).items()],
        confusions=list(_confusion_rows(run)),
        max_rows=MAX_ROWS,
        format_metric=format_metric,
        accuracy_interval=accuracy_interval,
        settings=_settings(run),
        findings=recommend(run),
        figures_by_section=_figures(run, path),
        checks=list(_check_rows(run)),
        time=format_duration(run.epochs[-1]["seconds"]) if run.epochs else "",
        speed=median_high(speeds) if speeds else None,
        folder=folder,
        unreadable=unreadable.read_text(encoding="utf-8") if unreadable.exists() else "",
        commands=_commands(run, path, folder),
        files=_files(path),
    )


def _knn_images(run: RunSummary) -> int:
    """Training images whose features `test/knn_acc` compares with; 0 without that metric."""
    if f"test/knn_acc{run.suffix}" not in run.final:
        return 0
    limit = run.setting("callbacks.features.knn_images")
    return run.images("train") if limit is None else min(limit, run.images("train"))


def _title(run: RunSummary, values: dict[str, Any]) -> str:
    titles = {f"test/acc{run.suffix}": "test", f"val/acc{run.suffix}": "validation", "train/acc": "training"}
    shown = next((key for key in titles if key in values), None)
    missing = "refused by the preflight checks" if run.failed_checks else "no finished epoch"
    result = f"{values[shown]:.2%} {titles[shown]} accuracy" if shown else missing
    return f"{run.config.name} on {run.data_set}: {result}"


def _class_row(name: str, row: dict[str, Any]) -> list[Any]:
    fractions = [row.get(key) for key in ("acc", "precision", "f1")]
    cells = [("-" if value is None else f"{value:.1%}", value or 0.0) for value in fractions]
    return [name, *((f"{row[key]:,}", row[key]) for key in ("images", "answers")), *cells]


def _confusion_rows(run: RunSummary) -> Iterator[list[Any]]:
    for pair in run.details.get("most_confused", []):
        images, total = pair["images"], run.details["per_class"][pair["class"]]["images"]
        yield [pair["class"], pair["taken_for"], (f"{images:,}", images), (f"{images / total:.1%}", images / total)]


def _check_rows(run: RunSummary) -> Iterator[list[str]]:
    """Result, name and finding of the preflight checks, those to look at first."""
    for check in sorted(run.checks, key=lambda check: check["status"] not in ("failed", "warning")):
        yield [check["status"], check["check"], f"{check['figure']} {check['meaning']}".strip()]


def _settings(run: RunSummary) -> list[tuple[str, str, str]]:
    """Name, value and key of the settings that the page lists."""
    further = {"callbacks.ema.decay": "EMA decay of the weights"}
    if run.manifest.get("weights"):
        further |= {
            "finetune.layer_decay": "layer-wise learning rate decay",
            "finetune.head_lr_multiplier": "learning rate of the head / learning rate",
            "finetune.freeze_epochs": "epochs in which only the head trains",
        }
    names, values = {**KEY_SETTINGS, **further}, {**run.hparams, **{key: run.setting(key) for key in further}}
    return [
        (names[path], value if isinstance(value, str) else f"{value:g}", path)
        for path, value in values.items()
        if path not in ("model", "data") and value is not None  # the setup names model and data
    ]


def _figures(run: RunSummary, path: Path) -> dict[str, list[Block]]:
    """The figures, arranged, by the section that they are in."""
    sections: dict[str, list[PageFigure]] = {title: [] for title in SECTIONS.values()}
    for figure in read_figures(path):
        group = figure.tag.partition("/")[0]
        if group != "test" or run.final:  # else they are those of an earlier end, before the run was resumed
            size = round(figure.width / SHARPNESS), round(figure.height / SHARPNESS)
            image, link = data_uri(figure.file.read_bytes()), quote(figure.file.relative_to(path).as_posix())
            shown = PageFigure(figure.title, figure.caption, image, *size, link)
            sections.setdefault(SECTIONS.get(group, group), []).append(shown)
    return {title: list(arrange(found)) for title, found in sections.items() if found}


def _files(path: Path) -> list[tuple[str, str, str]]:
    """Name, link and content of the run's files and folders that exist."""
    further = {f"checkpoints/{file.name}": "another epoch" for file in sorted(path.glob("checkpoints/*.ckpt"))}
    contents = {**further, **FILES}
    names = [name for name in (*FILES, *further) if (path / name).exists()]
    return [(name, quote(name), contents[name]) for name in dict.fromkeys(names)]


def _commands(run: RunSummary, path: Path, folder: Path) -> list[tuple[str, str]]:
    """Resume if that is possible, check out the code, reproduce and evaluate: what each command is for, and the command
    as you type it in `folder`."""
    place, trusted = relative_to(path, folder), " ".join(["", *trust(run.config)])
    resume, reproduce, kept = (quote_for_shell(f"{key}={place}") + trusted for key in ("resume", "reproduce", "run"))
    command = str(run.manifest.get("command", "python train.py"))
    train, evaluate = (entry_point(verb, command, folder) for verb in ("train", "evaluate"))
    lines = []
    if not run.final and run.resumable:
        lines.append(("Resume the run", f"{train} {resume}"))
    if IS_CLONE and (revision := (run.manifest.get("git") or {}).get("revision")):
        checkout = f"git -C {quote_for_shell(relative_to(ROOT, folder))} checkout {revision}"
        lines.append(("Check out its code", checkout))
    if any(path.rglob("events.out.tfevents.*")):
        lines.append(("Show its curves", f"tensorboard --logdir {quote_for_shell(place)}"))
    if not run.failed_checks:
        lines.append(("Train again in a new directory, and compare the metrics", f"{train} {reproduce}"))
    if run.resumable:
        split = "" if run.images("test") else " split=val"
        lines.append(("Evaluate the kept weights", f"{evaluate} {kept}{split}"))
    return lines
