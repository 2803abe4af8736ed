"""Draw the figures of a run: schedule, first batch, test predictions."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from tensorboard.compat.proto.summary_pb2 import Summary
from timm.layers import PatchDropout, PatchDropoutWithIndices
from torch import Tensor
from torch.utils.tensorboard.summary import compute_curve
from torch.utils.tensorboard.writer import SummaryWriter
from torchmetrics.utilities.distributed import gather_all_tensors

from vitlab.callbacks.checkpointing import BestCheckpoint
from vitlab.callbacks.ema import EMA
from vitlab.callbacks.time_limit import TimeLimit
from vitlab.compat import add_summary
from vitlab.data import Batch
from vitlab.files import set_aside, write_csv, write_json
from vitlab.metrics.evaluation import rank_classes
from vitlab.plots import image_grid
from vitlab.plots.classification import EVALUATION_FIGURES, MAX_NAMED, Predictions, draw_worst_classes
from vitlab.plots.curves import LR_SCHEDULE, compute_lr_schedule, draw_lr_schedule
from vitlab.plots.io import FigureText, never_failing, render, save
from vitlab.runs.tensorboard_logger import IMAGES

THRESHOLDS = 1001  # of a precision-recall curve
FIRST_BATCH_IMAGES = 20
TIME_STEPS = 500  # points of a schedule over time


def publish(trainer: pl.Trainer, name: str, text: FigureText, draw: Callable[..., Figure], *args: Any) -> None:
    """Draw `draw(*args)` into `figures/<name>.png` of the run and into its dashboard, on rank 0; never fails.

    The name starts with two digits: `figures/` is read in the order of names. An existing file, the same figure at an
    earlier time, is replaced.
    """
    if not trainer.is_global_zero:
        return
    with never_failing(f"the figure {name}"):
        image = render(partial(draw, *args), text.title)
        file = Path(trainer.default_root_dir) / "figures" / f"{name}.png"
        save(image, file, text)
        # Not add_image, which would encode the image a second time.
        size = {"height": image.height, "width": image.width, "colorspace": 3}
        value = Summary.Value(
            tag=IMAGES + text.tag, image=Summary.Image(**size, encoded_image_string=file.read_bytes())
        )
        for writer in writers(trainer):
            add_summary(writer, Summary(value=[value]), trainer.global_step)


def writers(trainer: pl.Trainer) -> Iterator[Any]:
    """Yield the TensorBoard SummaryWriters of a run's loggers."""
    for logger in trainer.loggers:
        writer = getattr(logger, "experiment", None)
        if isinstance(writer, SummaryWriter):
            yield writer


def selected_ema(trainer: pl.Trainer) -> EMA | None:
    """The callback whose averaged weights the run selects epochs by; None if it selects by the trained weights."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(c, BestCheckpoint) and str(c.monitor).endswith("_ema") for c in callbacks):
        return next(c for c in callbacks if isinstance(c, EMA))
    return None


class CollectLogits(pl.Callback):
    """Keeps the logits of an evaluation, or other values of its images, on the CPU."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []

    def keep(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, *_: Any, **__: Any) -> None:
        self._batches.append((outputs.cpu(), batch.indices.cpu()))

    on_validation_batch_end = keep
    on_test_batch_end = keep

    def gather(self, trainer: pl.Trainer) -> tuple[Tensor, Tensor]:
        """Logits, float32 `[N, classes]`, and indices, int64 `[N]`, of all ranks' images, in the order of the split.

        All ranks must call it.
        """
        logits, index = (torch.cat(parts) for parts in zip(*self._batches, strict=True))
        if trainer.world_size > 1:
            device = trainer.strategy.root_device
            logits, index = (torch.cat(gather_all_tensors(part.to(device))).cpu() for part in (logits, index))
        order = index.argsort()
        return logits[order], index[order]


class Figures(pl.Callback):
    """Draws figures into `figures/` of the run and into its dashboard.

    After the first step: the planned learning rate and the first batch as the model sees it. After the test: confusion
    matrix, accuracy by class, reliability diagram, most confident errors, hardest and most typical images,
    precision-recall curves, and `test_details.json`; of the EMA weights if the run selects epochs by them.
    `level` is "off" (or False, as YAML reads it), "light", or "full": confusion matrix, accuracy by class and
    reliability diagram of the validation images after each epoch too.
    """

    def __init__(self, level: str | bool) -> None:
        self.level = level or "off"
        self.collected: CollectLogits | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.start_is_due = self.level != "off" and trainer.is_global_zero
        self.batch_is_due = self.start_is_due and trainer.global_step == 0
        self.first_batch: tuple[Tensor, Tensor] | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        if self.batch_is_due:  # copies: a model may change its input in place
            self.batch_is_due = False
            images, labels = (part[:FIRST_BATCH_IMAGES].to("cpu", copy=True) for part in (batch.images, batch.labels))
            self.first_batch = images, labels

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Draw the figures of the start, so that the first step does not wait for them."""
        if not self.start_is_due:
            return
        self.start_is_due = False
        with never_failing("the planned learning rate"):
            _draw_lr_schedule(trainer, pl_module)
        if self.first_batch:
            _draw_first_batch(trainer, pl_module, *self.first_batch)
            self.first_batch = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.collected = CollectLogits() if self.level == "full" and not trainer.sanity_checking else None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.collected = CollectLogits() if self.level != "off" else None

    def _collect(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, *_: Any, **__: Any
    ) -> None:
        if self.collected is not None:
            if ema := selected_ema(trainer):
                outputs = ema.logits_for_batch(trainer, pl_module, batch, batch_idx, outputs)
            self.collected.keep(trainer, pl_module, outputs, batch, batch_idx)

    on_validation_batch_end = _collect
    on_test_batch_end = _collect

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.collected is None:
            return
        split = "test" if trainer.testing else "val"
        logits, index = self.collected.gather(trainer)
        if not trainer.is_global_zero:
            return
        with never_failing(f"the {split} figures"):
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            whole = data.splits[split]
            arrays = whole if len(index) == len(whole) else whole.take(index)  # without copying all images
            found = Predictions(logits.softmax(dim=1), rank_classes(logits)[:, 0], arrays.labels, data.spec.classes)
            first = 80 if split == "test" else 70
            for number, text, draw, describe in EVALUATION_FIGURES:
                # The whole matrix names up to MAX_NAMED classes.
                if draw is not draw_worst_classes or len(found.classes) > MAX_NAMED:
                    described = replace(text, tag=f"{split}/{text.tag}").add(describe(found))
                    publish(trainer, f"{first + number}_{split}_{text.tag}", described, draw, found)
            if split == "test":
                errors = image_grid.ERRORS.add(image_grid.describe_errors(found))
                publish(trainer, "83_test_errors", errors, image_grid.draw_errors, found, arrays)
                publish(trainer, "84_test_extremes", image_grid.EXTREMES, image_grid.draw_extremes, found, arrays)
                _log_precision_recall(trainer, found)
                file = Path(trainer.default_root_dir) / "test_details.json"
                set_aside(file)
                write_json(file, found.as_data())
                heads, *rows = found.confusion_table()
                write_csv(file.with_name("confusion_test.csv"), heads, rows)

    on_validation_end = on_test_end = _draw


def _draw_first_batch(trainer: pl.Trainer, module: Any, images: Tensor, labels: Tensor) -> None:
    spec = trainer.datamodule.spec  # type: ignore[attr-defined]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    kinds = (PatchDropout, PatchDropoutWithIndices)
    dropout = next((part.prob for part in module.modules() if isinstance(part, kinds)), 0.0)
    hidden = f"The model leaves out a random {dropout:.0%} of each image's patches, which is not shown."
    text = image_grid.FIRST_BATCH.add(hidden if dropout else "")
    shown = images.float() * std + mean, labels, spec.classes
    publish(trainer, "12_first_batch", text, image_grid.draw_batch, *shown)


def _draw_lr_schedule(trainer: pl.Trainer, module: Any) -> None:
    steps, scheduler = module.last_step(), module.scheduler
    clock = next((c for c in trainer.callbacks if isinstance(c, TimeLimit)), None)  # type: ignore[attr-defined]
    if scheduler is None or module.monitor is not None:
        return  # nothing to draw, or it depends on a metric
    if clock is not None and "progress" in scheduler.keywords:
        updates, interval, epoch, unit = TIME_STEPS, clock.seconds / TIME_STEPS / 60, None, "minutes of training"
    elif steps < float("inf"):
        epoch = max(1, -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches))
        interval = 1 if module.interval == "step" else epoch  # optimizer steps
        updates, unit = -(-int(steps) // interval), "optimizer step"
    else:
        return  # the run has no set length
    rate = module.optimizer.keywords.get("lr")
    rates = {}
    for scale in sorted({group["lr_scale"] for group in trainer.optimizers[0].param_groups}, reverse=True):
        keywords: dict[str, Any] = {"total_steps": module.total_steps()} if "total_steps" in scheduler.keywords else {}
        if "progress" in scheduler.keywords:
            keywords["progress"] = partial(next, iter([update / TIME_STEPS for update in range(TIME_STEPS + 1)]))
        group = {} if rate is None else {"lr": rate * scale}
        planned = compute_lr_schedule(module.optimizer, partial(scheduler, **keywords), updates, group)
        rates[f"{scale:.3g} x optimizer.lr"] = planned
    publish(trainer, "10_learning_rate", LR_SCHEDULE, draw_lr_schedule, rates, interval, epoch, unit)


def _log_precision_recall(trainer: pl.Trainer, found: Predictions) -> None:
    for label, name in enumerate(found.classes):
        # add_pr_curve has 127 thresholds, few of them among the small probabilities of a difficult class. TensorBoard
        # spaces any number of thresholds evenly in [0, 1].
        curve = compute_curve(  # type: ignore[no-untyped-call]
            (found.labels == label).numpy(), found.probabilities[:, label].numpy(), num_thresholds=THRESHOLDS
        )
        for writer in writers(trainer):
            writer.add_pr_curve_raw(f"precision_recall/{name}", *curve, trainer.global_step)
