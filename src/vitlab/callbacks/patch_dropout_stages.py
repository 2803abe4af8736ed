"""Change the fraction of dropped patches in stages of the run."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from timm.layers import PatchDropout, PatchDropoutWithIndices

from vitlab.errors import UserError


class PatchDropoutStages(pl.Callback):
    """Drops one fraction of the patches after the other, each for an equal part of the run (by time, steps or epochs,
    whichever the run is limited by).

    A ViT whose last part sees whole images, as in evaluation, and whose first part is cheap (Liu et al. 2022,
    "PatchDropout: Economizing Vision Transformers Using Patch Dropout", trains with one fraction). Few stages, because
    torch.compile makes a graph for each.
    """

    def __init__(self, fractions: Sequence[float]) -> None:
        self.fractions = list(fractions)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.parts: Any = [m for m in pl_module.modules() if isinstance(m, PatchDropout | PatchDropoutWithIndices)]
        if not self.parts:
            raise UserError("callbacks.patch_dropout_stages: the model drops no patches; set model.patch_dropout")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        stage = int(pl_module.progress(trainer.current_epoch) * len(self.fractions))
        for part in self.parts:
            part.prob = self.fractions[min(stage, len(self.fractions) - 1)]
