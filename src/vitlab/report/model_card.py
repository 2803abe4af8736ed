"""Write the model card of an export: the README.md that the hub shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn

from vitlab.files import write_text
from vitlab.metrics import format_metric, further_metrics, metric_title
from vitlab.models import VisionTransformer, timm_facts
from vitlab.report.run_summary import RunSummary, accuracy_interval
from vitlab.runs.console import format_duration
from vitlab.runs.hparams import KEY_SETTINGS
from vitlab.weights.hub import PREFIX

TEMPLATE = Path(__file__).with_name("model_card.md")
TASK = "image-classification"
HUB_DATA_SETS = {"CIFAR10": "uoft-cs/cifar10", "CIFAR100": "uoft-cs/cifar100"}
SHOWN_CLASSES = 20


@dataclass(frozen=True)
class Export:
    """What a card tells about the files beside it."""

    files: Mapping[str, str]  # name -> content
    network: nn.Module
    weights: str  # "raw" or "ema"
    checkpoint: str  # name of the file that they are from
    is_tested: bool  # whether the run's final metrics are those of this checkpoint
    repo: str | None  # its repository on the hub, `<user>/<name>`
    license: str | None  # an identifier of the hub's


def write_model_card(run: RunSummary, export: Export, file: Path) -> None:
    """Write the card: metadata for the hub, results, how to use each file, limits, data and training.

    Results are those of the run's own test, of one view of each image, with the weights that are exported.
    """
    suffix = "_ema" if export.weights == "ema" else ""
    values = {**run.best, **run.final} if run.final and export.is_tested else {}
    splits = [split for split in ("test", "val") if f"{split}/acc{suffix}" in values]
    names = [name for name in further_metrics(values) if any(f"{split}/{name}{suffix}" in values for split in splits)]
    tested = "test" in splits
    unmeasured = "the run has no validation and no test" if values else "the run has not finished"
    if run.final and not export.is_tested:
        unmeasured = f"the run has tested another checkpoint than {export.checkpoint}"
    started = run.manifest.get("weights") or {}
    repo = export.repo or "<user>/<name>"
    card = ModelCard.from_template(
        _metadata(run, export, {name: values[f"test/{name}{suffix}"] for name in ("acc", *names)} if tested else {}),
        str(TEMPLATE),
        title=repo.partition("/")[2] if export.repo else run.config.name,
        run=run,
        data_set=_data_set(run),
        model=run.hparams["model"],
        parameters=sum(parameter.numel() for parameter in export.network.parameters()),
        start=started.get("from"),
        classes=_list_classes(run.classes),
        files=export.files,
        notes=_notes(run),
        results=[_row(run, split, suffix, [*names, "loss"], values) for split in splits],
        titles=[metric_title(name) for name in [*names, "loss (nats)"]],
        tested=tested,
        worst=_worst_classes(run) if tested and suffix == run.suffix else "",
        unmeasured=unmeasured,
        timm="config.json" in export.files,
        repo=repo,
        placeholder=export.repo is None,
        torch=".".join(torch.__version__.split(".")[:2]),
        ema=bool(suffix),
        time=format_duration(run.final.get("seconds", 0)),
        device=_device(run),
        settings=[(KEY_SETTINGS[path], value) for path, value in run.hparams.items() if path in KEY_SETTINGS],
        license=export.license,
    )
    write_text(file, f"{str(card).rstrip()}\n")


def _metadata(run: RunSummary, export: Export, tested: Mapping[str, float]) -> ModelCardData:
    is_timm = "config.json" in export.files
    is_vit = isinstance(export.network, VisionTransformer) or "vision_transformer" in type(export.network).__module__
    tags = {"vitlab": True, "vision-transformer": is_vit, "onnx": "model.onnx" in export.files}
    known = HUB_DATA_SETS.get(run.data_set)
    results = [
        EvalResult(
            task_type=TASK,
            task_name="Image classification",
            dataset_type=known or run.data_set.lower(),
            dataset_name=run.data_set,
            dataset_split="test",
            metric_type="accuracy" if name == "acc" else name,
            metric_name=metric_title(name).capitalize() if name == "acc" else metric_title(name),
            metric_value=value,
        )
        for name, value in tested.items()
    ]
    return ModelCardData(
        library_name="timm" if is_timm else "onnx" if "model.onnx" in export.files else "pytorch",
        pipeline_tag=TASK,
        tags=[tag for tag, applies in tags.items() if applies],
        license=export.license,
        base_model=_base_model(run),
        datasets=[known] if known else None,
        metrics=["accuracy"] if results else None,
        model_name=export.repo.partition("/")[2] if export.repo else run.config.name,
        eval_results=results or None,
    )


def _data_set(run: RunSummary) -> str:
    """The data set, linked if it is on the hub."""
    known = HUB_DATA_SETS.get(run.data_set)
    return f"[{run.data_set}](https://huggingface.co/datasets/{known})" if known else _code(run.data_set)


def _base_model(run: RunSummary) -> str | None:
    """The repository of the pretrained weights that the run started from, if they are from the hub."""
    origin = str((run.manifest.get("weights") or {}).get("from"))
    if origin.startswith(PREFIX):
        return origin.removeprefix(PREFIX).partition("@")[0]
    return timm_facts(run.config.model.name).hf_hub_id if origin.startswith("timm's ") else None


def _row(run: RunSummary, split: str, suffix: str, names: Sequence[str], values: Mapping[str, float]) -> list[str]:
    accuracy, count = values[f"{split}/acc{suffix}"], run.used(split)
    title = {"test": "test", "val": "validation"}[split]
    further = [format_metric(f"{split}/{name}{suffix}", values) for name in names]
    return [title, f"{count:,}", f"{accuracy:.2%}", accuracy_interval(accuracy, count), *further]


def _worst_classes(run: RunSummary, count: int = 3) -> str:
    recalls = {name: row["acc"] for name, row in run.details.get("per_class", {}).items() if row["acc"] is not None}
    worst = sorted(recalls, key=lambda name: recalls[name])[:count]
    return ", ".join(f"{_code(name)} ({recalls[name]:.1%})" for name in worst)


def _list_classes(classes: Sequence[str]) -> str:
    shown = ", ".join(map(_code, classes[:SHOWN_CLASSES]))
    return shown + (f" and {len(classes) - SHOWN_CLASSES} more" if len(classes) > SHOWN_CLASSES else "")


def _code(name: str) -> str:
    """A name as Markdown shows it unchanged."""
    return f"`{name.replace('`', chr(39)).replace('|', '¦')}`"


def _notes(run: RunSummary) -> list[str]:
    """Facts about the images, without the folder that they lie in on this machine."""
    places = [str(place) for place in (run.setting("data.root"), run.setting("data.file")) if place]
    notes: list[str] = run.manifest.get("notes", [])
    for place in places:
        notes = [note.replace(place, run.data_set) for note in notes]
    return notes


def _device(run: RunSummary) -> str:
    hardware: dict[str, Any] = run.manifest.get("hardware") or {}
    gpus = hardware.get("gpus") if run.setting("trainer.accelerator") != "cpu" else None
    return str(gpus[0]) if gpus else f"{hardware.get('cpu')} ({hardware.get('cpu_cores')} cores)"
