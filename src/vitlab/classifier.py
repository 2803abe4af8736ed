"""ImageClassifier, the LightningModule: loss, metrics, optimizer and schedule."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.utilities import GradClipAlgorithmType, rank_zero_warn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vitlab.config.instantiate import build_loss, build_named_metrics, build_network
from vitlab.data import Batch, main_class
from vitlab.distributed.strategies import shard
from vitlab.errors import UserError
from vitlab.losses import CrossEntropy
from vitlab.metrics import METRICS
from vitlab.metrics.evaluation import EvaluationMetrics, MeanLoss
from vitlab.models import head_modules, head_names
from vitlab.optim import Finetuning, adamw_param_names
from vitlab.runs.checkpoint import CONFIG_KEY, RATE_KEY, read_checkpoint
from vitlab.runs.trust import check_trusted


class ImageClassifier(pl.LightningModule):
    """Trains a model, images `[B, 3, H, W]` -> logits `[B, classes]`.

    Logged as means over the images of an epoch: `train/loss` (the loss that is minimised), `train/acc` (of augmented
    images; of mixed images, for the class with the larger weight), and for validation and test images `val/loss`,
    `val/acc`, `test/loss`, `test/acc` (the loss without label smoothing; fractions) and the chosen `metrics`. Logged
    every `log_every_n_steps` steps, at least once per epoch: `train/loss_step` and `lr`; `lr` also at the end of an
    epoch.

    Args:
        loss: Called with logits and labels (see `vitlab.losses`); None for cross-entropy. In eval mode for evaluation.
        metrics: Metrics beside loss and accuracy, as in a config (see `vitlab.metrics`).
        seed: Dropout and stochastic depth of a batch depend on (seed, number of the batch in the run, rank).
        optimizer: Called with parameter groups; biases, norms and the parameters that the model's `no_weight_decay()`
            names have no weight decay.
        finetuning: Which parameters learn, how fast, and from which epoch.
        scheduler: Called with the optimizer, and with the run's `total_steps` or the `progress` of its time if it has
            that keyword.
        interval, monitor: "step" or "epoch", when the scheduler moves; metric for a scheduler that needs one.
        max_steps: Optimizer steps after which `FinalValidation` ends the run; -1 for no limit.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        seed: int,
        loss: nn.Module | None = None,
        metrics: Sequence[Any] = (),
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        finetuning: Finetuning | None = None,
        scheduler: partial[Any] | None = None,
        interval: str = "step",
        monitor: str | None = None,
        max_steps: int = -1,
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss or CrossEntropy()
        self.seed = seed
        self.optimizer = optimizer
        self.finetuning = finetuning or Finetuning()
        self.scheduler = scheduler
        self.interval = interval
        self.monitor = monitor
        self.max_steps = max_steps
        self.time_progress: Callable[[], float] | None = None  # set by TimeLimit: fraction of the time that has passed
        self.skips_non_finite = False
        self.skipped_steps = 0  # in this epoch
        self._lr_logged_at = -1  # step
        self._learning_rate = math.nan  # of the last step
        self.head = head_names(network)
        if self.finetuning.needs_head and not self.head:
            raise UserError(
                f"finetune: {type(network).__name__} does not say what its head is: give it a method get_classifier() "
                "that returns the last layer"
            )
        learning = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        self.backbone = [name for name in learning if name not in self.head]
        if self.finetuning.freeze_epochs == "all":  # before DDP collects the parameters that learn
            self._let_backbone_learn(False)
        self.losses = nn.ModuleDict({"train_loss": MeanLoss()})
        self.accuracies = nn.ModuleDict({"train_acc": METRICS["acc"].build(num_classes)})
        self.new_metrics = partial(EvaluationMetrics, metrics, num_classes)
        self.evaluated = nn.ModuleDict({split: self.new_metrics() for split in ("val", "test")})
        for metric in self._train_metrics().values():
            metric.persistent(True)  # to resume in the middle of an epoch

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, map_location: Any = None, *, trusted_targets: Sequence[str] = (), **kwargs: Any
    ) -> Self:
        """As Lightning's, with the model, loss and metrics of the config in the checkpoint, for use without vitlab's
        commands: it has no optimizer, and with `callbacks=ema` the raw weights. `kwargs` go to Lightning's and to the
        class. UserError if the file is no checkpoint, or its config names a target that is not trusted."""
        config = OmegaConf.create(read_checkpoint(Path(checkpoint_path))[CONFIG_KEY])
        check_trusted(OmegaConf.to_container(config), trusted_targets)
        parts = {
            "network": build_network(config.model),
            "num_classes": config.data.num_classes,
            "seed": config.seed,
            "loss": build_loss(config.loss),
            "metrics": build_named_metrics(config.metrics),
        }
        return super().load_from_checkpoint(checkpoint_path, map_location, weights_only=True, **{**parts, **kwargs})

    def configure_model(self) -> None:
        mesh = self.device_mesh
        if mesh is not None and not isinstance(self.network, FSDPModule):  # Lightning asks before fit, and before test
            shard(self.network, mesh["data_parallel"])

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def _let_backbone_learn(self, learns: bool) -> None:
        for name in self.backbone:
            self.network.get_parameter(name).requires_grad_(learns)

    def on_fit_start(self) -> None:
        # DDP expects gradients for all parameters that required them at first, unless it looks in each step.
        wrapped, freeze_epochs = self.trainer.strategy.model, self.finetuning.freeze_epochs
        is_fixed = isinstance(wrapped, DistributedDataParallel) and not wrapped.find_unused_parameters
        if freeze_epochs not in (0, "all") and is_fixed:
            raise UserError(
                f"finetune.freeze_epochs={freeze_epochs} on several devices needs trainer.strategy="
                "ddp_find_unused_parameters_true, or with trainer=ddp trainer.strategy.find_unused_parameters=true"
            )
        if isinstance(freeze_epochs, int) and 0 < (self.trainer.max_epochs or -1) <= freeze_epochs:
            rank_zero_warn(f"finetune.freeze_epochs={freeze_epochs} covers the whole run: only the head learns")

    def on_train_start(self) -> None:
        if self.global_rank:  # of an epoch that is resumed, rank 0 has the sums over all ranks
            self._reset_train_metrics()
        # At least one logged step per epoch; callbacks that log steps follow the trainer's value too.
        trainer: Any = self.trainer
        steps = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, steps)
        self._freeze_as_planned()  # Lightning does not call on_train_epoch_start for an epoch that is resumed

    def on_train_epoch_start(self) -> None:
        self._reset_train_metrics()  # the checkpoint of an epoch's end still has its sums
        self._freeze_as_planned()

    def _reset_train_metrics(self) -> None:
        for metric in self._train_metrics().values():
            metric.reset()

    def _freeze_as_planned(self) -> None:
        if self.finetuning.freeze_epochs != 0:
            self.freeze_backbone(self.finetuning.frozen(self.current_epoch))

    def freeze_backbone(self, frozen: bool) -> None:
        """Train the head alone, with the rest in eval mode, or everything, in training mode."""
        self._let_backbone_learn(not frozen)
        self.network.train(not frozen)  # in eval mode dropout is off and batch norms keep their statistics
        for module in head_modules(self.network):
            module.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # By batch, not by step: the accumulated batches of one step must not share their masks. The factors keep seed,
        # batch and rank apart: seed 0, batch 1 is not seed 1, batch 0.
        batch_number = self.trainer.fit_loop.total_batch_idx
        torch.manual_seed(((self.seed * 1_000_003 + batch_number) * 65_537 + self.global_rank) % 2**63)
        group = self.trainer.optimizers[0].param_groups[0]
        self._learning_rate = float(group["lr"]) / group["lr_scale"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        logits = self(batch.images)
        loss = self.training_loss(logits, batch.labels)
        if self.skips_non_finite and not bool(loss.isfinite()):
            self.skipped_steps += 1
            return None
        self.losses["train_loss"].update(loss.detach(), len(batch.labels))  # type: ignore[operator]
        self.accuracies["train_acc"].update(logits.detach(), main_class(batch.labels))  # type: ignore[operator]
        if self.trainer.loggers and self._is_logged_step(batch_idx):
            # Not self.log: it costs 0.3 ms in every step, and passes values on only after a checkpoint of the step.
            mean = self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")  # ranks have equally many images
            self._log_at(self.global_step, {"train/loss_step": float(mean)})
        return loss

    def _is_logged_step(self, batch_idx: int) -> bool:
        trainer: Any = self.trainer
        batches = batch_idx + 1
        is_step = batches % trainer.accumulate_grad_batches == 0 or batches == trainer.num_training_batches
        return is_step and (self.global_step + 1) % trainer.log_every_n_steps == 0

    def _log_at(self, step: int, values: dict[str, float]) -> None:
        self._lr_logged_at = step
        for logger in self.trainer.loggers:
            logger.log_metrics({**values, "lr": self._learning_rate, "epoch": self.current_epoch + 1}, step=step)

    def training_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The scalar to minimise; labels are int64 `[B]` or, after mixing, float32 `[B, classes]`."""
        return self.loss(logits, labels)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Batch) -> Tensor:
        logits = self(batch.images).float()
        self.evaluated[stage].update(self.loss(logits, batch.labels), logits, batch.labels)  # type: ignore[operator]
        return logits

    def train_metrics_so_far(self) -> tuple[float, float]:
        """Loss (nats) and accuracy of this rank's images in this epoch; waits for the device, not for other ranks."""
        loss, accuracy = self._train_metrics().values()
        seen = (accuracy.tp + accuracy.fn).item()
        return (loss.total / loss.images).item(), accuracy.tp.item() / max(seen, 1)

    # A checkpoint inside an epoch holds the sums over all ranks' images; rank 0 continues from them.
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for path, metric in self._train_metrics().items():
            for name, value in metric.metric_state.items():
                total = self.trainer.strategy.reduce(value.clone(), reduce_op="sum")
                if f"{path}.{name}" in checkpoint["state_dict"]:
                    checkpoint["state_dict"][f"{path}.{name}"] = total
        checkpoint[RATE_KEY] = self._learning_rate

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._learning_rate = checkpoint.get(RATE_KEY, math.nan)  # logged at the end of an epoch that has no batch left

    def _train_metrics(self) -> dict[str, Any]:
        """The training metrics, by their path in the state_dict."""
        return {path: self.get_submodule(path) for path in ("losses.train_loss", "accuracies.train_acc")}

    def on_train_epoch_end(self) -> None:
        # Lightning computes metric objects over all ranks, and resets them.
        self.log("train/loss", self.losses["train_loss"])  # type: ignore[arg-type]
        self.log("train/acc", self.accuracies["train_acc"])  # type: ignore[arg-type]
        self.log("lr", self._learning_rate, logger=False, sync_dist=True)
        if self._lr_logged_at != self.global_step - 1:
            self._log_at(self.global_step - 1, {})  # the step that Lightning logs the epoch's metrics at
        self._step_plateau()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()

    def _step_plateau(self) -> None:
        """Lightning would do it after the epoch's checkpoints, which then lack it, and never in an epoch that is
        resumed."""
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau) and (self.current_epoch + 1) % config.frequency == 0:
                value = self.trainer.callback_metrics.get(str(config.monitor))
                if value is not None:
                    config.scheduler.step(value)
                elif config.strict:
                    raise UserError(f"scheduler.monitor={config.monitor}: no such metric is logged")

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _log_evaluation(self, split: str) -> None:
        values = self.evaluated[split].compute()  # type: ignore[operator]
        self.log_dict({f"{split}/{name}": value for name, value in values.items()}, sync_dist=True)

    def progress(self, epoch: int) -> float:
        """Fraction of the run that has passed at an epoch (from 0), by epochs, steps or time; 0 without any limit."""
        epochs = self.trainer.max_epochs
        by_epochs = epoch / epochs if epochs and epochs > 0 else 0.0
        by_steps = self.global_step / self.max_steps if self.max_steps > 0 else 0.0
        return max(by_epochs, by_steps, self.time_progress() if self.time_progress else 0.0)

    def last_step(self) -> float:
        """The number of optimizer steps of the whole run; infinite if neither epochs nor steps are limited."""
        steps = self.trainer.estimated_stepping_batches
        return min(steps, self.max_steps) if self.max_steps > 0 else steps

    def total_steps(self) -> int:
        """The number of times the schedule moves in the whole run."""
        steps = self.last_step()
        if steps == float("inf"):
            raise UserError("this scheduler needs the length of the run: set trainer.max_epochs or trainer.max_steps")
        if self.interval == "step":
            return int(steps)
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise UserError("scheduler.interval=epoch needs the run's length in epochs: set trainer.max_epochs")
        return epochs

    def make_optimizer(self) -> torch.optim.Optimizer:
        assert self.optimizer is not None
        settings: Mapping[str, Any] = getattr(self.optimizer, "keywords", {})
        no_weight_decay: Any = getattr(self.network, "no_weight_decay", set)
        fallback = adamw_param_names(self.optimizer, self.network, self.head)
        decay = settings.get("weight_decay", 0.0)
        groups = self.finetuning.parameter_groups(
            self.network, self.head, weight_decay=decay, no_weight_decay=no_weight_decay(), fallback=fallback
        )
        for group in groups:
            if group["lr_scale"] != 1:
                if "lr" not in settings:
                    raise UserError("finetune: learning rates per layer need optimizer.lr")
                group["lr"] = settings["lr"] * group["lr_scale"]
        return self.optimizer(groups)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        plugin: Any = self.trainer.precision_plugin
        if getattr(plugin, "scaler", None) is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        # Not by Lightning 2.6.6's mixed precision, which refuses fused optimizers even without a scaler (issue 21435).
        algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
        Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0, algorithm)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer()
        if self.scheduler is None:
            return optimizer
        length: dict[str, Any] = {}
        if "total_steps" in self.scheduler.keywords:
            length["total_steps"] = self.total_steps()
        if "progress" in self.scheduler.keywords:
            if self.time_progress is None:
                raise UserError("this scheduler follows the run's time: set trainer.max_time=DD:HH:MM:SS")
            length["progress"] = self.time_progress
        try:
            scheduler = self.scheduler(optimizer, **length)
        except ValueError as error:
            raise UserError(str(error)) from error
        wiring = {"scheduler": scheduler, "interval": self.interval, "monitor": self.monitor}
        wiring["reduce_on_plateau"] = False  # see _step_plateau
        if str(self.monitor).startswith("val/"):  # act in the epochs that are validated
            epochs = self.trainer.check_val_every_n_epoch  # None: whenever `val_check_interval` says
            wiring |= {"frequency": epochs or 1, "strict": epochs is not None}
        return {"optimizer": optimizer, "lr_scheduler": wiring}  # type: ignore[return-value]
