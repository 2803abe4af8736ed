"""What is drawn of a run."""

from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from timm.layers import PatchDropout
from torch import Tensor, nn
from torch.utils.tensorboard.summary import compute_curve
from torchmetrics.utilities.distributed import gather_all_tensors

from vitlab.callbacks.best_checkpoint import BestCheckpoint
from vitlab.callbacks.collect_logits import CollectLogits
from vitlab.callbacks.ema import EMA
from vitlab.callbacks.time_limit import TimeLimit
from vitlab.classifier import rank_classes
from vitlab.data import Batch, DataSpec
from vitlab.files import set_aside, write_json
from vitlab.plots import captions, never_failing, publish, takeaways, writers
from vitlab.plots.classification import (
    NAMED,
    draw_confusions,
    draw_least_recognised,
    draw_per_class,
    draw_reliability,
)
from vitlab.plots.image_grid import draw_batch, draw_extremes, draw_mistakes
from vitlab.plots.lr_schedule import draw_plan, planned_rates
from vitlab.plots.predictions import Outcome

THRESHOLDS = 1001  # of a precision-recall curve
SHOWN = 20  # images of the first batch
TIMES = 500  # at which a schedule over time is drawn
OUTCOME_FIGURES = (  # with the second digit of their files
    (0, captions.CONFUSIONS, draw_confusions, takeaways.of_confusions),
    (0, captions.LEAST_RECOGNISED, draw_least_recognised, takeaways.of_classes),
    (1, captions.PER_CLASS, draw_per_class, takeaways.of_classes),
    (2, captions.RELIABILITY, draw_reliability, takeaways.of_reliability),
)


class Figures(pl.Callback):
    """Draws into `figures/` of the run and its dashboard.

    Before training: the learning rate as planned, the first batch as the network sees it. From the logits of the test
    pass: confusions, accuracy of each class, reliability, the surest mistakes, the hardest and most typical images,
    precision-recall curves, and `test_details.json`. Of a run that selects epochs by the average of the weights, these
    are the average's.

    Args:
        level: "off" (or False, as YAML reads it), "light", or "full": confusions and reliability of the validation
            images after each epoch too.
    """

    def __init__(self, level: str | bool) -> None:
        if level not in (False, "off", "light", "full"):
            raise ValueError(f"level={level} of Figures is unknown; choose off, light or full")
        self.level = level or "off"
        self.collected: CollectLogits | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.batch_is_due = self.level != "off" and trainer.global_step == 0
        if self.level != "off" and trainer.is_global_zero:
            with never_failing("the learning rate as planned"):
                _draw_plan(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self.batch_is_due:
            self.batch_is_due = False
            data = trainer.datamodule  # type: ignore[attr-defined]
            said = _with(captions.FIRST_BATCH, takeaways.of_first_batch(_patch_dropout(pl_module)))
            publish(trainer, "12_first_batch", partial(_draw_batch, batch, data.spec), **said, step=0)

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
                average = next(c for c in callbacks if isinstance(c, EMA))
                outputs = average.look(trainer, pl_module, batch, batch_idx, outputs)
            self.collected.keep(trainer, pl_module, outputs, batch, batch_idx)

    on_validation_batch_end = _collect
    on_test_batch_end = _collect

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.collected is not None:
            self._draw_outcome(trainer, "val", self.collected)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.collected is not None:
            self._draw_outcome(trainer, "test", self.collected)

    def _draw_outcome(self, trainer: pl.Trainer, split: str, collected: CollectLogits) -> None:
        logits, places = _of_all_ranks(trainer, collected)
        if not trainer.is_global_zero:
            return
        with never_failing(f"the {split} figures"):
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            whole = data.splits[split]
            arrays = whole if len(places) == len(whole) else whole.take(places)  # no copy of all images
            outcome = Outcome(logits.softmax(dim=1), rank_classes(logits)[:, 0], arrays.labels, data.spec.classes)
            show = partial(publish, trainer, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
            first = 80 if split == "test" else 70
            for number, about, draw, finding in OUTCOME_FIGURES:
                if draw is not draw_least_recognised or len(outcome.classes) > NAMED:  # else the whole has their names
                    said = _with(about, finding(outcome), f"{split}/")
                    show(f"{first + number}_{split}_{about['tag']}", partial(draw, outcome), **said)
            if split == "test":
                said = _with(captions.MISTAKES, takeaways.of_mistakes(outcome))
                show("83_test_mistakes", partial(draw_mistakes, outcome, arrays), **said)
                show("84_test_extremes", partial(draw_extremes, outcome, arrays), **captions.EXTREMES)
                _precision_recall(trainer, outcome)
                file = Path(trainer.default_root_dir) / "test_details.json"
                set_aside(file)
                write_json(file, outcome.as_data())


def _with(about: captions.About, finding: str, section: str = "") -> captions.About:
    return {**about, "tag": f"{section}{about['tag']}", "caption": f"{finding} {about['caption']}".lstrip()}


def _patch_dropout(module: nn.Module) -> float:
    return next((part.prob for part in module.modules() if isinstance(part, PatchDropout)), 0.0)


def _draw_batch(batch: Batch, spec: DataSpec) -> Figure:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    shown = batch.images[:SHOWN].float().cpu()
    return draw_batch(shown * std + mean, batch.labels[:SHOWN].cpu(), spec.classes)


def _of_all_ranks(trainer: pl.Trainer, collected: CollectLogits) -> tuple[Tensor, Tensor]:
    """Logits and places of all ranks' images, in the order of the split; all ranks must call it."""
    logits, places = collected.logits, collected.index
    if trainer.world_size > 1:
        device = trainer.strategy.root_device
        logits = torch.cat(gather_all_tensors(logits.to(device))).cpu()
        places = torch.cat(gather_all_tensors(places.to(device))).cpu()
    order = places.argsort()
    return logits[order], places[order]


def _draw_plan(trainer: pl.Trainer, module: Any) -> None:
    steps, scheduler = trainer.estimated_stepping_batches, module.scheduler
    clock = next((c for c in trainer.callbacks if isinstance(c, TimeLimit)), None)  # type: ignore[attr-defined]
    if scheduler is None or module.monitor is not None:
        return  # a schedule that follows a metric is not known before
    if clock is not None and "progress" in scheduler.keywords:
        moves, stretch, epoch, unit = TIMES, clock.seconds / TIMES / 60, None, "minutes of training"
    elif steps < float("inf"):
        epoch = max(1, -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches))
        stretch = 1 if module.interval == "step" else epoch  # steps between two moves
        moves, unit = -(-int(steps) // stretch), "optimizer step"
    else:
        return  # a run without a set end
    rate = module.optimizer.keywords.get("lr")
    rates = []
    for scale in sorted({group["lr_scale"] for group in trainer.optimizers[0].param_groups}, reverse=True):
        facts: dict[str, Any] = {"total_steps": module.total_steps()} if "total_steps" in scheduler.keywords else {}
        if "progress" in scheduler.keywords:
            facts["progress"] = partial(next, iter([move / TIMES for move in range(TIMES + 1)]))
        group = {} if rate is None else {"lr": rate * scale}
        planned = planned_rates(module.optimizer, partial(scheduler, **facts), moves, group)
        rates.append((f"{scale:.3g} x optimizer.lr", planned))
    draw = partial(draw_plan, rates, stretch, epoch, unit)
    publish(trainer, "10_learning_rate", draw, **captions.PLAN, step=trainer.global_step)


def _precision_recall(trainer: pl.Trainer, outcome: Outcome) -> None:
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    for label, name in enumerate(outcome.classes):
        # Not add_pr_curve: of its 127 thresholds few lie among the small probabilities of a class that is hard to
        # tell. TensorBoard takes any number of them to lie evenly in [0, 1].
        curve = compute_curve(  # type: ignore[no-untyped-call]
            (outcome.labels == label).numpy(), outcome.probabilities[:, label].numpy(), num_thresholds=THRESHOLDS
        )
        for writer in writers(trainer):
            writer.add_pr_curve_raw(f"precision_recall/{name}", *curve, step)
