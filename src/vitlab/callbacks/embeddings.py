"""Measure and show the features of the test images, which the head reads."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from vitlab.callbacks.figures import CollectLogits, publish, selected_ema, writers
from vitlab.compat import is_compiled
from vitlab.data import Batch
from vitlab.data.arrays import ImageArrays
from vitlab.data.loader import epoch_order
from vitlab.errors import UserError
from vitlab.metrics.evaluation import MeanLoss, rank_classes
from vitlab.models.features import FeatureRecorder, features_and_logits
from vitlab.models.knn import NearestNeighbours
from vitlab.plots.grid import shorten_name
from vitlab.plots.io import never_failing
from vitlab.plots.projection import MAX_POINTS, PROJECTION, PROJECTOR, describe_projection, draw_projection, project

THUMBNAIL = 64  # px, at most, of an image in the Projector: 32 x 32 of them fit into a texture of any GPU
NAME_LENGTH = 80  # characters of a name in the Projector


class Features(pl.Callback):
    """Logs `test/knn_acc`, the accuracy of classifying the test images' features by their nearest neighbours among
    training images (`NearestNeighbours`); draws the features in two dimensions, and shows them in TensorBoard's
    Projector, for at most 1,000 images.

    The features are those of the test's own forward passes, of the EMA weights (`test/knn_acc_ema`) if the run selects
    epochs by them. A model without a layer that is its head is left out, with a warning.

    Args:
        level: "off" (or False, as YAML reads it) draws nothing.
        knn_images: Training images among which neighbours are searched, random ones, always the same. None takes all, 0
            leaves `test/knn_acc` out.
    """

    def __init__(self, level: str | bool, knn_images: int | None) -> None:
        self.draws = (level or "off") != "off"
        self.knn_images = knn_images
        self.is_on = False

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.is_on = self.draws or self.knn_images != 0
        if not self.is_on:
            return
        self.ema = selected_ema(trainer)
        self.network: nn.Module = self.ema.average.module if self.ema else pl_module.network
        self.neighbours: NearestNeighbours | None = None
        self.accuracy = MeanLoss().to(pl_module.device)
        self.features, self.predictions = CollectLogits(), CollectLogits()
        self.recorder: FeatureRecorder | None = None
        try:
            if self.knn_images != 0:
                self.neighbours = self._learn_neighbours(trainer)
        except UserError as error:
            self._leave_out(error)
            return
        # The graph of a compiled model does not call hooks: the features of its batches are computed again.
        if not is_compiled(self.network):
            self.recorder = FeatureRecorder(self.network)

    def _learn_neighbours(self, trainer: pl.Trainer) -> NearestNeighbours:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loader, collected = data.evaluation_loader("train", self.knn_images), CollectLogits()
        for stored in loader:
            batch = trainer.strategy.batch_to_device(stored)
            collected.keep(trainer, None, self._compute(trainer, batch.images), batch)
        features, index = (part.to(trainer.strategy.root_device) for part in collected.gather(trainer))
        return NearestNeighbours(features, loader.arrays.labels.to(index.device)[index])

    def _compute(self, trainer: pl.Trainer, images: Tensor) -> Tensor:
        with trainer.precision_plugin.forward_context():
            # The average is float32 in every precision.
            return features_and_logits(self.network, images.float() if self.ema else images)[0]

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not self.is_on:
            return
        logits = self.ema.logits_for_batch(trainer, pl_module, batch, batch_idx, outputs) if self.ema else outputs
        try:
            features = self.recorder.take() if self.recorder else self._compute(trainer, batch.images)
        except UserError as error:
            self._leave_out(error)
            return
        if self.neighbours is not None:
            is_right = self.neighbours.predict(features) == batch.labels
            self.accuracy.update(is_right.float().mean(), len(is_right))
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.draws and batch_idx * data.eval_batch_size < MAX_POINTS:
            self.features.keep(trainer, pl_module, features, batch)
            self.predictions.keep(trainer, pl_module, rank_classes(logits)[:, 0], batch)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.is_on and self.neighbours is not None:
            name = f"{'test' if trainer.testing else 'val'}/knn_acc{'_ema' if self.ema else ''}"
            pl_module.log(name, self.accuracy.compute(), sync_dist=True)

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not self.is_on:
            return
        self._stop()
        if not self.draws:
            return
        (features, index), (predicted, _) = (part.gather(trainer) for part in (self.features, self.predictions))
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        split, classes = data.splits["test"], data.spec.classes
        shown = torch.isin(index, epoch_order(len(split), 0, 0)[:MAX_POINTS])  # of whole batches; their order is random
        features, predicted, images = features[shown], predicted[shown], split.take(index[shown])
        with never_failing("the projection of the features"):
            points, explained = project(features)
            text = PROJECTION.add(describe_projection(explained, len(points), len(split)), last=True)
            if any(writers(trainer)):
                text = text.add(PROJECTOR, last=True)
            publish(trainer, "85_test_features", text, draw_projection, points, images.labels, classes)
        with never_failing("the Projector"):
            _add_to_projector(trainer, features, images, predicted, classes)

    # `evaluate.py` measures validation and training images too, as Lightning's validation.
    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_test_start(trainer, pl_module)

    on_validation_batch_end = on_test_batch_end
    on_validation_epoch_end = on_test_epoch_end
    on_validation_end = on_test_end

    def _leave_out(self, error: UserError) -> None:
        rank_zero_warn(f"the features of the test images are left out: {error}")
        self._stop()

    def _stop(self) -> None:
        self.is_on = False
        if self.recorder is not None:
            self.recorder.close()


def _add_to_projector(
    trainer: pl.Trainer, features: Tensor, images: ImageArrays, predicted: Tensor, classes: Sequence[str]
) -> None:
    side = min(THUMBNAIL, images.image_shape[-1])
    thumbnails = [
        F.interpolate(chunk / 255, (side, side), mode="bilinear", antialias=True) for chunk in images.chunks()
    ]
    rows = [
        [shorten_name(" ".join(text.split()), NAME_LENGTH) for text in (classes[label], classes[prediction], name)]
        for label, prediction, name in zip(images.labels.tolist(), predicted.tolist(), images.names, strict=True)
    ]
    for writer in writers(trainer):
        shutil.rmtree(Path(writer.log_dir) / "projector", ignore_errors=True)  # of an earlier end of this run
        writer.add_embedding(
            features,
            rows,
            torch.cat(thumbnails),
            "projector",  # the folder; torch makes it from the step
            tag="test_features",
            metadata_header=["class", "prediction", "image"],
        )
