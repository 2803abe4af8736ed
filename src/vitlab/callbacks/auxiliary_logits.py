"""Other logits of an evaluation's images, measured beside the network's own."""

from abc import abstractmethod
from typing import Any

import pytorch_lightning as pl
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from vitlab.classifier import MeanLoss
from vitlab.data import Batch


class AuxiliaryLogits(pl.Callback):
    """Logs `<split>/loss_<suffix>` (nats) and `<split>/acc_<suffix>` in validation and test, means over the images of
    all ranks."""

    suffix: str
    looked = -1  # the batch of the evaluation that was looked at last

    @abstractmethod
    def logits(self, pl_module: Any, images: Tensor, own: Tensor) -> Tensor:
        """Logits `[B, classes]` of images as the network gets them, `[B, 3, H, W]`; `own` are the network's."""

    def look(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int, own: Tensor) -> Tensor:
        """The logits of a batch of the evaluation, float32, computed once whoever asks first."""
        if self.looked != batch_idx:
            self.looked = batch_idx
            with trainer.precision_plugin.forward_context():
                self.seen = self.logits(pl_module, batch.images, own).float()
        return self.seen

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.looked = -1
        self.loss = MeanLoss().to(pl_module.device)
        classes = pl_module.accuracies["val_acc"].num_classes
        self.accuracy = MulticlassAccuracy(classes, average="micro", validate_args=False).to(pl_module.device)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        logits = self.look(trainer, pl_module, batch, batch_idx, outputs)
        self.loss.update(F.cross_entropy(logits, batch.labels), len(batch.labels))
        self.accuracy.update(logits, batch.labels)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._log("val", pl_module)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._log("test", pl_module)

    def _log(self, split: str, pl_module: Any) -> None:
        figures = {"loss": self.loss.compute(), "acc": self.accuracy.compute()}  # of all ranks
        pl_module.log_dict({f"{split}/{name}_{self.suffix}": v for name, v in figures.items()}, sync_dist=True)
