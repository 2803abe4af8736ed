"""Write report.html, a run on one page, from templates that other pages use too."""

import json
import os
import shlex
from base64 import b64encode
from collections import Counter
from io import BytesIO
from math import log
from pathlib import Path
from statistics import median_high
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from vitlab.files import quote_for_shell, write_text
from vitlab.metrics import format_metric, further_metrics, metric_title
from vitlab.plots.curves import CURVES, draw_curves
from vitlab.plots.io import never_failing, read_figures, render, save
from vitlab.report.recommendations import recommend
from vitlab.report.run_summary import RunSummary, accuracy_interval, read_run_summary
from vitlab.runs.console import format_duration
from vitlab.runs.directory import RunDirectory
from vitlab.runs.hparams import KEY_SETTINGS
from vitlab.runs.manifest import entry_point
from vitlab.runs.trust import trust

# page.html is the layout of all pages, parts.html has their parts, report.html is the page of a run.
TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
TEMPLATES.filters |= {"number": format, "yaml": OmegaConf.to_yaml}
_parts: Any = TEMPLATES.get_template("parts.html").module
section, paragraph, code, table = _parts.section, _parts.paragraph, _parts.code, _parts.table

SECTIONS = {  # of figures, by the first part of their tag; others have that part as their title
    "curves": "Training curves",
    "test": "Test images",
    "val": "Validation images",
    "learnt": "Learned filters, positions and attention",
    "data": "Training images",
    "plan": "Learning rate schedule",
}
SHARPNESS = 1.5  # pixels of a figure per pixel of the page


def page(title: str, subtitle: str, *sections: str) -> str:
    """A page of sections."""
    content = Markup("\n").join(sections)
    return TEMPLATES.get_template("page.html").render(title=title, subtitle=subtitle, content=content)


def picture(figure: Figure, caption: str) -> Markup:
    """A figure as a PNG inside the page."""
    file = BytesIO()
    figure.savefig(file, format="png")
    return _parts.figure(_data_uri(file.getvalue()), caption)


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode('ascii')}"


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
    titles = {f"test/acc{run.suffix}": "test", f"val/acc{run.suffix}": "validation", "train/acc": "training"}
    shown = next(key for key in titles if key in values)
    preflight = path / "preflight.json"
    checks = json.loads(preflight.read_text(encoding="utf-8"))["checks"] if preflight.exists() else []
    unreadable = RunDirectory(path).unreadable_file
    speeds = [row["images_per_second"] for row in run.epochs if "images_per_second" in row]
    folder = Path(run.manifest.get("folder") or Path.cwd())
    return TEMPLATES.get_template("report.html").render(
        title=f"{run.config.name} on {run.data_set}: {values[shown]:.2%} {titles[shown]} accuracy",
        run=run,
        values=values,
        validated=sum("val/acc" in row for row in run.epochs),
        chance_loss=log(len(run.classes)),
        further=further_metrics(values),
        metric_title=metric_title,
        knn_images=_knn_images(run),
        classes=[_class_row(name, row) for name, row in run.details.get("per_class", {}).items()],
        format_metric=format_metric,
        accuracy_interval=accuracy_interval,
        settings=_settings(run),
        findings=recommend(run),
        figures=_figures(run, path),
        time=format_duration(run.epochs[-1]["seconds"]),
        speed=median_high(speeds) if speeds else None,
        checks=Counter(check["status"] for check in checks),
        folder=folder,
        unreadable=unreadable.read_text(encoding="utf-8") if unreadable.exists() else "",
        commands=_commands(run, path, folder),
    )


def _knn_images(run: RunSummary) -> int:
    """Training images whose features `test/knn_acc` compares with; 0 without that metric."""
    if f"test/knn_acc{run.suffix}" not in run.final:
        return 0
    limit = run.setting("callbacks.features.knn_images")
    return run.images("train") if limit is None else min(limit, run.images("train"))


def _class_row(name: str, row: dict[str, Any]) -> list[Any]:
    fractions = [row.get(key) for key in ("acc", "precision", "f1")]
    cells = [("-" if value is None else f"{value:.1%}", value or 0.0) for value in fractions]
    return [name, *((f"{row[key]:,}", row[key]) for key in ("images", "answers")), *cells]


def _settings(run: RunSummary) -> list[tuple[str, str, str]]:
    """Name, value and key of the settings that the page lists."""
    names = {**KEY_SETTINGS, "callbacks.ema.decay": "EMA decay of the weights"}
    values = {**run.hparams, "callbacks.ema.decay": run.setting("callbacks.ema.decay")}
    return [
        (names[path], value if isinstance(value, str) else f"{value:g}", path)
        for path, value in values.items()
        if path not in ("model", "data") and value is not None  # the setup names model and data
    ]


def _figures(run: RunSummary, path: Path) -> dict[str, list[tuple[str, str, int]]]:
    """PNG, caption and width (pixels) of the figures, by the section that they are in."""
    sections: dict[str, list[tuple[str, str, int]]] = {title: [] for title in SECTIONS.values()}
    for figure in read_figures(path):
        group = figure.tag.partition("/")[0]
        if group != "test" or run.final:  # else they are those of an earlier end, before the run was resumed
            image = _data_uri(figure.file.read_bytes()), figure.caption, round(figure.width / SHARPNESS)
            sections.setdefault(SECTIONS.get(group, group), []).append(image)
    return sections


def _commands(run: RunSummary, path: Path, folder: Path) -> list[str]:
    """Resume if that is possible, check out the code, reproduce and evaluate, as you type it in `folder`."""
    place, trusted = os.path.relpath(path, folder), " ".join(["", *trust(run.config)])
    resume, reproduce, kept = (quote_for_shell(f"{key}={place}") + trusted for key in ("resume", "reproduce", "run"))
    command = str(run.manifest.get("command", "python train.py"))
    train, evaluate = (entry_point(name, command, folder) for name in ("train.py", "evaluate.py"))
    lines = [] if run.final else [f"python {train} {resume}"]
    if revision := (run.manifest.get("git") or {}).get("revision"):
        code_folder = shlex.quote(str(Path(shlex.split(train)[0]).parent))
        lines.append(f"git -C {code_folder} checkout {revision}")
    split = "" if run.images("test") else " split=val"
    return [*lines, f"python {train} {reproduce}", f"python {evaluate} {kept}{split}"]
