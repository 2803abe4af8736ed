"""ImageClassifier, the LightningModule: loss, metrics, optimizer wiring."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from vitlab.data import Batch
from vitlab.errors import UserError


class ImageClassifier(pl.LightningModule):
    """Trains a network, images `[B, 3, H, W]` -> logits `[B, classes]`, by cross-entropy.

    Logged, as means over the images of an epoch: `train/loss` (nats, with label smoothing: what is minimised),
    `train/acc` (of the augmented images), and `val/loss val/acc test/loss test/acc` (nats without label smoothing;
    fractions). Every `log_every_n_steps` steps: `train/loss_step`, and `lr`, which is logged at an epoch's end too.

    Args:
        network: What is trained.
        num_classes: Width of the logits.
        label_smoothing: Share of the target spread over all classes (Szegedy et al. 2016, section 7).
        seed: Dropout and stochastic depth of a step are a function of (seed, step, rank).
        optimizer: Called with parameter groups; biases, norms and what the network's `no_weight_decay()` names have
            no weight decay.
        scheduler: Called with the optimizer, and with `total_steps` of the run where it has that keyword.
        interval: The scheduler moves every "step" or "epoch".
        monitor: Metric for a scheduler that needs one.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        label_smoothing: float,
        seed: int,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: partial[Any] | None = None,
        interval: str = "step",
        monitor: str | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.label_smoothing = label_smoothing
        self.seed = seed
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.interval = interval
        self.monitor = monitor
        stages = ("train", "val", "test")
        self.losses = nn.ModuleDict({f"{s}_loss": MeanMetric() for s in stages})
        self.accuracies = nn.ModuleDict(
            {f"{s}_acc": MulticlassAccuracy(num_classes, average="micro", validate_args=False) for s in stages}
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Large odd strides keep (seed, step, rank) apart: seed 0, step 1 is not seed 1, step 0.
        torch.manual_seed(((self.seed * 1_000_003 + self.global_step) * 65_537 + self.global_rank) % 2**63)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self(batch.images)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        self._update("train", loss, logits, batch.labels)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            # Not each step: a call costs 0.3 ms, and Lightning passes on no more than these to the loggers.
            self.log_dict({"train/loss_step": loss.detach(), "lr": self._learning_rate()})
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Batch) -> Tensor:
        logits = self(batch.images).float()
        self._update(stage, F.cross_entropy(logits, batch.labels), logits, batch.labels)
        return logits

    def _update(self, stage: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.losses[f"{stage}_loss"].update(loss.detach(), weight=len(labels))  # type: ignore[operator]
        self.accuracies[f"{stage}_acc"].update(logits.detach(), labels)  # type: ignore[operator]

    def _learning_rate(self) -> float:
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def train_metrics_so_far(self) -> tuple[float, float]:
        """Loss (nats) and accuracy of this rank's images of the epoch so far; waits for the device, not for ranks."""
        loss: Any = self.losses["train_loss"]
        accuracy: Any = self.accuracies["train_acc"]
        seen = (accuracy.tp + accuracy.fn).item()
        return (loss.mean_value / loss.weight).item(), accuracy.tp.item() / max(seen, 1)

    def on_train_epoch_end(self) -> None:
        self._log_epoch("train")
        self.log("lr", self._learning_rate())

    def on_validation_epoch_end(self) -> None:
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        self._log_epoch("test")

    def _log_epoch(self, stage: str) -> None:
        for kind, metric in (("loss", self.losses[f"{stage}_loss"]), ("acc", self.accuracies[f"{stage}_acc"])):
            self.log(f"{stage}/{kind}", metric.compute())  # type: ignore[operator]
            metric.reset()  # type: ignore[operator]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        assert self.optimizer is not None
        weight_decay = getattr(self.optimizer, "keywords", {}).get("weight_decay", 0.0)
        no_weight_decay: Any = getattr(self.network, "no_weight_decay", set)
        groups = param_groups_weight_decay(self.network, weight_decay, no_weight_decay_list=no_weight_decay())
        optimizer = self.optimizer([group for group in groups if group["params"]])
        if self.scheduler is None:
            return optimizer
        facts = {}
        if "total_steps" in self.scheduler.keywords:
            facts["total_steps"] = int(self.trainer.estimated_stepping_batches)
        try:
            scheduler = self.scheduler(optimizer, **facts)
        except ValueError as error:
            raise UserError(str(error)) from error
        wiring = {"scheduler": scheduler, "interval": self.interval, "monitor": self.monitor}
        return {"optimizer": optimizer, "lr_scheduler": wiring}  # type: ignore[return-value]
