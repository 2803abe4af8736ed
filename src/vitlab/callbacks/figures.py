"""Draw the figures of a run: schedule, first batch, test predictions."""

from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from timm.layers import PatchDropout
from torch import Tensor
from torch.utils.tensorboard.summary import compute_curve
from torchmetrics.utilities.distributed import gather_all_tensors

from vitlab.callbacks.checkpointing import BestCheckpoint
from vitlab.callbacks.ema import EMA
from vitlab.callbacks.time_limit import TimeLimit
from vitlab.classifier import rank_classes
from vitlab.data import Batch, DataSpec
from vitlab.files import set_aside, write_json
from vitlab.plots import image_grid
from vitlab.plots.classification import (
    CLASS_ACCURACY,
    CONFUSION_MATRIX,
    MAX_NAMED,
    RELIABILITY,
    WORST_CLASSES,
    describe_classes,
    describe_confusions,
    describe_reliability,
    draw_class_accuracy,
    draw_confusion_matrix,
    draw_reliability,
    draw_worst_classes,
)
from vitlab.plots.curves import LR_SCHEDULE, compute_lr_schedule, draw_lr_schedule
from vitlab.plots.io import never_failing, publish, writers
from vitlab.plots.predictions import Predictions

THRESHOLDS = 1001  # of a precision-recall curve
FIRST_BATCH_IMAGES = 20
TIME_STEPS = 500  # points of a schedule over time
EVALUATION_FIGURES = (  # the first number is the second digit of the file name
    (0, CONFUSION_MATRIX, draw_confusion_matrix, describe_confusions),
    (0, WORST_CLASSES, draw_worst_classes, describe_classes),
    (1, CLASS_ACCURACY, draw_class_accuracy, describe_classes),
    (2, RELIABILITY, draw_reliability, describe_reliability),
)


class CollectLogits(pl.Callback):
    """Keeps the logits of an evaluation on the CPU, in the order of the split: `logits` float32 `[N, classes]` and the
    images' indices `index`, int64 `[N]`, ascending."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []

    def keep(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._batches.append((outputs.cpu(), batch.indices.cpu()))

    on_validation_batch_end = keep
    on_test_batch_end = keep

    @property
    def logits(self) -> Tensor:
        return torch.cat([logits for logits, _ in self._batches])[self._order()]

    @property
    def index(self) -> Tensor:
        return torch.cat([indices for _, indices in self._batches])[self._order()]

    def _order(self) -> Tensor:
        return torch.cat([indices for _, indices in self._batches]).argsort()


class Figures(pl.Callback):
    """Draws figures into `figures/` of the run and into its dashboard.

    Before training: the planned learning rate and the first batch as the model sees it. After the test: confusion
    matrix, accuracy by class, reliability diagram, most confident errors, hardest and most typical images,
    precision-recall curves, and `test_details.json`; of the EMA weights if the run selects epochs by them.

    Args:
        level: "off" (or False, as YAML reads it), "light", or "full": confusion matrix, accuracy by class and
            reliability diagram of the validation images after each epoch too.
    """

    def __init__(self, level: str | bool) -> None:
        if level not in (False, "off", "light", "full"):
            raise ValueError(f"level={level} of Figures is unknown; choose off, light or full")
        self.level = level or "off"
        self.collected: CollectLogits | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.batch_is_due = self.level != "off" and trainer.global_step == 0
        if self.level != "off" and trainer.is_global_zero:
            with never_failing("the planned learning rate"):
                _draw_lr_schedule(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self.batch_is_due:
            self.batch_is_due = False
            dropout = next((part.prob for part in pl_module.modules() if isinstance(part, PatchDropout)), 0.0)
            text = image_grid.FIRST_BATCH.add(image_grid.describe_first_batch(dropout))
            spec = trainer.datamodule.spec  # type: ignore[attr-defined]
            publish(trainer, "12_first_batch", partial(_draw_batch, batch, spec), text, step=0)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.collected = CollectLogits() if self.level == "full" and not trainer.sanity_checking else None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.collected = CollectLogits() if self.level != "off" else None

    def _collect(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.collected is not None:
            callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
            if any(isinstance(c, BestCheckpoint) and str(c.monitor).endswith("_ema") for c in callbacks):
                ema = next(c for c in callbacks if isinstance(c, EMA))
                outputs = ema.logits_for_batch(trainer, pl_module, batch, batch_idx, outputs)
            self.collected.keep(trainer, pl_module, outputs, batch, batch_idx)

    on_validation_batch_end = _collect
    on_test_batch_end = _collect

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, "test")

    def _draw(self, trainer: pl.Trainer, split: str) -> None:
        if self.collected is None:
            return
        logits, index = _gather(trainer, self.collected)
        if not trainer.is_global_zero:
            return
        with never_failing(f"the {split} figures"):
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            whole = data.splits[split]
            arrays = whole if len(index) == len(whole) else whole.take(index)  # without copying all images
            classes = data.spec.classes
            found = Predictions(logits.softmax(dim=1), rank_classes(logits)[:, 0], arrays.labels, classes)
            show = partial(publish, trainer, step=trainer.global_step)
            first = 80 if split == "test" else 70
            for number, text, draw, describe in EVALUATION_FIGURES:
                # The whole matrix names up to MAX_NAMED classes.
                if draw is not draw_worst_classes or len(classes) > MAX_NAMED:
                    described = text.add(describe(found), f"{split}/")
                    show(f"{first + number}_{split}_{text.tag}", partial(draw, found), described)
            if split == "test":
                errors = image_grid.ERRORS.add(image_grid.describe_errors(found))
                show("83_test_errors", partial(image_grid.draw_errors, found, arrays), errors)
                show("84_test_extremes", partial(image_grid.draw_extremes, found, arrays), image_grid.EXTREMES)
                _log_precision_recall(trainer, found)
                file = Path(trainer.default_root_dir) / "test_details.json"
                set_aside(file)
                write_json(file, found.as_data())


def _draw_batch(batch: Batch, spec: DataSpec) -> Figure:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    images, labels = (part[:FIRST_BATCH_IMAGES].cpu() for part in (batch.images, batch.labels))
    return image_grid.draw_batch(images.float() * std + mean, labels, spec.classes)


def _gather(trainer: pl.Trainer, collected: CollectLogits) -> tuple[Tensor, Tensor]:
    """Logits and indices of all ranks' images, in the order of the split; all ranks must call it."""
    logits, index = collected.logits, collected.index
    if trainer.world_size > 1:
        device = trainer.strategy.root_device
        logits, index = (torch.cat(gather_all_tensors(part.to(device))).cpu() for part in (logits, index))
    order = index.argsort()
    return logits[order], index[order]


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
    rates = []
    for scale in sorted({group["lr_scale"] for group in trainer.optimizers[0].param_groups}, reverse=True):
        keywords: dict[str, Any] = {"total_steps": module.total_steps()} if "total_steps" in scheduler.keywords else {}
        if "progress" in scheduler.keywords:
            keywords["progress"] = partial(next, iter([update / TIME_STEPS for update in range(TIME_STEPS + 1)]))
        group = {} if rate is None else {"lr": rate * scale}
        planned = compute_lr_schedule(module.optimizer, partial(scheduler, **keywords), updates, group)
        rates.append((f"{scale:.3g} x optimizer.lr", planned))
    draw = partial(draw_lr_schedule, rates, interval, epoch, unit)
    publish(trainer, "10_learning_rate", draw, LR_SCHEDULE, trainer.global_step)


def _log_precision_recall(trainer: pl.Trainer, found: Predictions) -> None:
    for label, name in enumerate(found.classes):
        # add_pr_curve has 127 thresholds, few of them among the small probabilities of a difficult class. TensorBoard
        # spaces any number of thresholds evenly in [0, 1].
        curve = compute_curve(  # type: ignore[no-untyped-call]
            (found.labels == label).numpy(), found.probabilities[:, label].numpy(), num_thresholds=THRESHOLDS
        )
        for writer in writers(trainer):
            writer.add_pr_curve_raw(f"precision_recall/{name}", *curve, trainer.global_step)
