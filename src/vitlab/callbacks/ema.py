"""Exponential moving average of the weights."""

from typing import Any

import pytorch_lightning as pl
from timm.utils import ModelEmaV3
from torch import Tensor

from vitlab.callbacks.auxiliary_logits import AuxiliaryLogits
from vitlab.runs.checkpoint import EMA_KEY, network_weights


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
