"""Choose the metrics of a run by name: the one table of them.

To add one, add an entry to `METRICS`. The config check, checkpoints, early stopping, sweeps, terminal, metrics.csv,
TensorBoard, report and leaderboard follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from vitlab.errors import UserError

if TYPE_CHECKING:  # torch is imported with the first metric that is built
    from torchmetrics import Metric

VIEWS = ("flip", "shift", "multi")  # of each image, averaged
SUFFIXES = ("_ema", *(f"_{views}" for views in VIEWS))  # of the same metric of the EMA weights, and of several views


@dataclass(frozen=True)
class MetricKind:
    """A metric of logits `[N, classes]` and labels int64 `[N]`.

    Attributes:
        title: Its name in tables and figures.
        target: The class that measures it, called with `num_classes` and `arguments`.
        mode: Whether the smaller ("min") or the larger ("max") value is better.
        unit: "%" for fractions, which are shown in percent, else "nats" or "".
        of_probabilities: It is given the softmax of the logits.
        least_classes: It tells nothing about fewer classes, and is left out.
    """

    title: str
    target: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    mode: str = "max"
    unit: str = "%"
    of_probabilities: bool = False
    least_classes: int = 2

    def format(self, value: float) -> str:
        return f"{value:.2%}" if self.unit == "%" else f"{value:.4f}"

    def build(self, num_classes: int) -> Metric:
        module, _, name = self.target.rpartition(".")
        metric: Metric = getattr(import_module(module), name)(
            num_classes=num_classes, validate_args=False, **self.arguments
        )
        return metric


# Macro averages weigh all classes equally that have images; F1 and precision also those that are only predicted, as in
# scikit-learn. ECE: 15 bins, as in Guo et al. 2017.
CLASSIFICATION = "torchmetrics.classification."
METRICS: Mapping[str, MetricKind] = {
    "loss": MetricKind("loss", mode="min", unit="nats"),  # of the config group `loss`
    "acc": MetricKind("accuracy", CLASSIFICATION + "MulticlassAccuracy", {"average": "micro"}),
    "top5": MetricKind(
        "top-5 accuracy", CLASSIFICATION + "MulticlassAccuracy", {"average": "micro", "top_k": 5}, least_classes=6
    ),
    "balanced_acc": MetricKind("balanced accuracy", "vitlab.metrics.evaluation.MeanRecall"),
    "f1": MetricKind("macro F1", CLASSIFICATION + "MulticlassF1Score", {"average": "macro"}),
    "precision": MetricKind("macro precision", CLASSIFICATION + "MulticlassPrecision", {"average": "macro"}),
    "recall": MetricKind("macro recall", "vitlab.metrics.evaluation.MeanRecall"),
    "auroc": MetricKind("macro AUROC", "vitlab.metrics.evaluation.MeanAUROC", of_probabilities=True),
    "ece": MetricKind(
        "calibration error",
        CLASSIFICATION + "MulticlassCalibrationError",
        {"n_bins": 15},
        mode="min",
        of_probabilities=True,
    ),
    "knn_acc": MetricKind("k-NN accuracy"),  # of the test images' features, by callbacks.features
}
ALWAYS = ("loss", "acc")  # measured in every run, in training too
CHOICES = tuple(name for name, kind in METRICS.items() if kind.target or name in ALWAYS)  # of the list `metrics`


def metric_name(key: str) -> str:
    """The name without split and weights of a logged metric: `f1` of `val/f1_ema`."""
    name = key.rpartition("/")[2]
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def metric_kind(key: str) -> MetricKind | None:
    """The kind of a logged metric such as `val/f1_ema`; None if it is not vitlab's."""
    return METRICS.get(metric_name(key))


def further_metrics(values: Iterable[str]) -> list[str]:
    """The names of the metrics beside loss and accuracy among logged ones: those of vitlab in the order of the table,
    then the user's own."""
    keys = [key for key in values if key.startswith(("val/", "test/"))]
    names = dict.fromkeys([*METRICS, *map(metric_name, keys)])
    return [name for name in names if name not in ALWAYS and any(metric_name(key) == name for key in keys)]


def metric_title(name: str) -> str:
    """The name of a metric in tables."""
    return METRICS[name].title if name in METRICS else name


def format_metric(key: str, values: Mapping[str, float]) -> str:
    """A value in text, with the unit that its metric is shown in; empty if it was not measured."""
    kind = metric_kind(key) or MetricKind("", unit="")
    return kind.format(values[key]) if key in values else ""


def logged_metrics(metrics: Sequence[Any]) -> dict[str, str]:
    """The metrics that a run with this `metrics` in its config logs each epoch, and the direction of the better value:
    those that a checkpoint can be selected by. EMA ones are logged with callbacks=ema."""
    names = [*ALWAYS, *(name for name in metrics if isinstance(name, str) and name in METRICS)]
    keys = {f"train/{name}": METRICS[name].mode for name in ALWAYS}
    return keys | {f"val/{name}{suffix}": METRICS[name].mode for suffix in ("", "_ema") for name in names}


def mode_of(key: str, mode: str | None = None) -> str:
    """Whether the smaller ("min") or the larger ("max") value of a metric is better; `mode` if vitlab does not know it.

    Raises:
        UserError: vitlab does not know the metric, and there is no mode.
    """
    found = _known_mode(key) or mode
    if found is None:
        raise UserError(f"checkpoint.monitor={key} is no metric of vitlab's: add +checkpoint.mode=max or min")
    return found


def _known_mode(key: str | None) -> str | None:
    kind = metric_kind(key) if key else None
    return kind.mode if kind else None


# In YAML files: ${mode_of:${checkpoint.monitor}}; null for a metric that vitlab does not know.
OmegaConf.register_new_resolver("mode_of", _known_mode, replace=True)


def build_metrics(names: Sequence[Any], num_classes: int) -> dict[str, Metric]:
    """The metrics to measure beside the loss, by name: accuracy, and those of the list `metrics` in a config, in which
    `{name: metric}` is one of the user's own."""
    found = {"acc": METRICS["acc"].build(num_classes)}
    for entry in names:
        if isinstance(entry, Mapping):
            found |= {name: metric.clone() for name, metric in entry.items()}
        elif entry not in ALWAYS and num_classes >= METRICS[entry].least_classes:
            found[entry] = METRICS[entry].build(num_classes)
    return found
