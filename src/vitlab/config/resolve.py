"""Decide each `auto` of the config, and refuse what this machine can't do."""

import logging

from omegaconf import DictConfig, OmegaConf, open_dict

from vitlab.distributed.process import this_process
from vitlab.errors import UserError

log = logging.getLogger(__name__)

FUSED = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD")  # have a kernel that updates all weights


def resolve_machine(config: DictConfig) -> None:
    """Replace each `auto` of the trainer, in place, and warn of a precision that the machine only emulates.

    Raises:
        UserError: the machine can't train in the precision, or the config wants more machines than were started.
    """
    from vitlab.models.execution import best_precision, has_cuda, has_gpu  # imports torch

    resolve_processes(config)
    trainer = config.trainer
    best = best_precision(trainer.accelerator)
    if trainer.sync_batchnorm == "auto":
        trainer.sync_batchnorm = has_cuda(trainer.accelerator)
    if trainer.precision == "auto":
        is_sharded = str(OmegaConf.select(trainer, "strategy._target_")).endswith(".FullySharded")
        trainer.precision = "32-true" if is_sharded and best == "16-mixed" else best  # Lightning refuses that pair
    chosen = str(trainer.precision)
    if chosen in ("16-mixed", "16-true") and not has_gpu(trainer.accelerator):
        raise UserError(f"trainer.precision={chosen}: a CPU does not train in float16; take auto ({best} here)")
    if chosen.startswith("bf16") and not best.startswith("bf16"):
        log.warning(
            f"trainer.precision={chosen}: this machine emulates bfloat16, many times slower than float32; "
            f"trainer.precision=auto takes {best}"
        )
    _choose_fused(config)


def _choose_fused(config: DictConfig) -> None:
    """Let torch's optimizers update all weights by one kernel on a GPU, unless `optimizer.fused` says otherwise."""
    from vitlab.models.execution import has_cuda

    optimizer, trainer = config.optimizer, config.trainer
    is_scaled = trainer.precision == "16-mixed"
    if optimizer.get("fused") and is_scaled and trainer.gradient_clip_val:
        raise UserError(
            "optimizer.fused=true unscales the gradients of trainer.precision=16-mixed too late to clip them: leave it "
            "out, or take trainer.gradient_clip_val=null"
        )
    if optimizer["_target_"] in FUSED and "fused" not in optimizer and has_cuda(trainer.accelerator) and not is_scaled:
        with open_dict(optimizer):
            optimizer.fused = True


def resolve_processes(config: DictConfig) -> None:
    """Replace `auto` by the number of processes and machines that torchrun or srun started, in place.

    Raises:
        UserError: the config wants more machines than were started.
    """
    trainer, me = config.trainer, this_process()
    if trainer.num_nodes == "auto":
        trainer.num_nodes = me.nodes
    if trainer.num_nodes != me.nodes:
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes}, but this was started on one machine alone: start it on each with "
            "torchrun or srun"
        )
    if me.launched_together and trainer.devices in ("auto", -1):
        trainer.devices = me.world_size // me.nodes
