"""Measure other logits next to the model's own: of EMA weights, of several views."""

import math
from abc import abstractmethod
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor

from vitlab.data import Batch
from vitlab.runs.checkpoint import EMA_KEY, network_weights


class AuxiliaryLogits(pl.Callback):
    """Logs `<split>/loss_<suffix>`, `<split>/acc_<suffix>` and the other metrics of the run in validation and test."""

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
        self.metrics = pl_module.new_metrics().to(pl_module.device)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        logits = self.logits_for_batch(trainer, pl_module, batch, batch_idx, outputs)
        self.metrics.update(pl_module.loss(logits, batch.labels), logits, batch.labels)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        split = "test" if trainer.testing else "val"
        values = self.metrics.compute()
        pl_module.log_dict({f"{split}/{name}_{self.suffix}": v for name, v in values.items()}, sync_dist=True)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


class EMA(AuxiliaryLogits):
    """Keeps an exponential moving average of the weights and buffers, and logs `val/loss_ema`, `val/acc_ema`,
    `test/loss_ema` and `test/acc_ema` next to the metrics of the trained weights (Polyak and Juditsky 1992;
    Morales-Brotons et al. 2024, "Exponential moving average of weights in deep learning").

    Lightning's WeightAveraging swaps the weights for each validation, so that only one of both is measured, and makes
    the host wait for a GPU twice in each step.

    Args:
        decay: EMA decay; averages about the last 1 / (1 - decay) steps.
        warmup: The decay of step t is at most t / (warmup + t): the average covers about the last 1/warmup of the steps
            so far, and forgets the initial weights in a short run too (TensorFlow's ExponentialMovingAverage with
            `num_updates` is similar to warmup=9).
    """

    suffix = "ema"

    def __init__(self, decay: float, warmup: float) -> None:
        self.decay = decay
        self.warmup = warmup

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.average = ModelEmaV3(
                pl_module.network, self.decay, use_warmup=True, warmup_gamma=self.warmup, warmup_power=1.0
            )
            self.step = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.average.to(pl_module.device)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > self.step:  # not while gradients are accumulated
            self.step = trainer.global_step
            self.average.update(pl_module.network, self.step)

    def compute_logits(self, pl_module: Any, images: Tensor, model_logits: Tensor) -> Tensor:
        logits: Tensor = self.average(images.float())  # the average is float32 in every precision
        return logits

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[EMA_KEY] = self.average.module.state_dict()

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Load the average; if the run was trained without one, start it from the weights."""
        self.average.module.load_state_dict(checkpoint.get(EMA_KEY, network_weights(checkpoint, "raw")))
        self.step = checkpoint["global_step"]


class ViewAveraging(AuxiliaryLogits):
    """Logs `<split>/loss_<kind>`, `<split>/acc_<kind>` ... of the mean probabilities of several views of each image
    (Krizhevsky et al. 2012, section 4.1).

    Args:
        kind: "flip": the image and its mirror image. "shift": the image, and moved by a 32nd of its side up and left,
            down and right. "multi": these three and their mirror images.
    """

    def __init__(self, kind: str) -> None:
        self.suffix = kind

    def compute_logits(self, pl_module: Any, images: Tensor, model_logits: Tensor) -> Tensor:
        logits = [model_logits, *(pl_module(view) for view in self.other_views(images))]
        log_probabilities = torch.stack([of_view.float().log_softmax(dim=1) for of_view in logits])
        return log_probabilities.logsumexp(dim=0) - math.log(len(logits))  # logarithms of the mean probabilities

    def other_views(self, images: Tensor) -> list[Tensor]:
        """The views `[B, 3, H, W]` beside the images themselves, `[B, 3, H, W]`."""
        views = [images]
        if self.suffix != "flip":
            height, width = images.shape[-2:]
            step = max(1, width // 32)
            padded = F.pad(images, [step] * 4, mode="reflect")
            views += [padded[..., 2 * step :, 2 * step :], padded[..., :height, :width]]
        if self.suffix != "shift":
            views += [view.flip(-1) for view in views]
        return views[1:]
