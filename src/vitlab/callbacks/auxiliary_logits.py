"""Evaluate other logits next to the model's own: EMA weights, flip TTA."""

import math
from abc import abstractmethod
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from vitlab.classifier import MeanLoss
from vitlab.data import Batch


class AuxiliaryLogits(pl.Callback):
    """Logs `<split>/loss_<suffix>` (nats) and `<split>/acc_<suffix>` in validation and test, as means over the images
    of all ranks."""

    suffix: str
    computed_batch = -1  # the batch that `computed` belongs to

    @abstractmethod
    def compute_logits(self, pl_module: Any, images: Tensor, model_logits: Tensor) -> Tensor:
        """Logits `[B, classes]` of model inputs `[B, 3, H, W]`, whose own logits are `model_logits`."""

    def logits_for_batch(
        self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int, model_logits: Tensor
    ) -> Tensor:
        """The logits of an evaluation batch, float32; computed once, by whichever callback asks first."""
        if self.computed_batch != batch_idx:
            self.computed_batch = batch_idx
            with trainer.precision_plugin.forward_context():
                self.computed = self.compute_logits(pl_module, batch.images, model_logits).float()
        return self.computed

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.computed_batch = -1
        self.loss = MeanLoss().to(pl_module.device)
        classes = pl_module.accuracies["val_acc"].num_classes
        self.accuracy = MulticlassAccuracy(classes, average="micro", validate_args=False).to(pl_module.device)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        logits = self.logits_for_batch(trainer, pl_module, batch, batch_idx, outputs)
        self.loss.update(F.cross_entropy(logits, batch.labels), len(batch.labels))
        self.accuracy.update(logits, batch.labels)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._log("val", pl_module)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._log("test", pl_module)

    def _log(self, split: str, pl_module: Any) -> None:
        values = {"loss": self.loss.compute(), "acc": self.accuracy.compute()}  # over all ranks
        pl_module.log_dict({f"{split}/{name}_{self.suffix}": v for name, v in values.items()}, sync_dist=True)


class FlipTTA(AuxiliaryLogits):
    """Logs `<split>/loss_flip` and `<split>/acc_flip`, of the mean probabilities of an image and its mirror image (two
    of the ten views of Krizhevsky et al. 2012, section 4.1)."""

    suffix = "flip"

    def compute_logits(self, pl_module: Any, images: Tensor, model_logits: Tensor) -> Tensor:
        views = [logits.float().log_softmax(dim=1) for logits in (model_logits, pl_module(images.flip(-1)))]
        return torch.logaddexp(*views) - math.log(2)  # logarithms of the mean probabilities
