"""An average of the weights over the steps, beside the weights themselves."""

from typing import Any

import pytorch_lightning as pl
from timm.utils import ModelEmaV3
from torch import Tensor

from vitlab.callbacks.auxiliary_logits import AuxiliaryLogits
from vitlab.runs.checkpoint import EMA_KEY, network_weights


class EMA(AuxiliaryLogits):
    """Keeps an exponential moving average of the weights and buffers, and logs `val/loss_ema`, `val/acc_ema`,
    `test/loss_ema` and `test/acc_ema` beside the metrics of the weights that are trained (Polyak and Juditsky 1992;
    Morales-Brotons et al. 2024, "Exponential moving average of weights in deep learning").

    Lightning's WeightAveraging trades the weights for their average in each validation, so that one of both is
    measured, and makes the host wait for a GPU twice in a step (torch's AveragedModel looks at its counter there).

    Args:
        decay: Share of the average that a step keeps, at the most.
        warmup: Step t keeps t / (warmup + t), until that comes to `decay`: the average goes back over about the last
            1/warmup of the steps so far, and forgets the start of a short run too (TensorFlow's
            ExponentialMovingAverage with `num_updates` is the like of warmup=9).
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
        if trainer.global_step > self.step:  # not in the midst of accumulated batches
            self.step = trainer.global_step
            self.average.update(pl_module.network, self.step)

    def logits(self, pl_module: Any, images: Tensor, own: Tensor) -> Tensor:
        logits: Tensor = self.average(images.float())  # the average is of float32 whatever the network computes in
        return logits

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[EMA_KEY] = self.average.module.state_dict()

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Of a run that begins to average when it goes on, the average begins with its weights."""
        self.average.module.load_state_dict(checkpoint.get(EMA_KEY, network_weights(checkpoint, "raw")))
        self.step = checkpoint["global_step"]
