"""Decide each `auto` of the config, and refuse what this machine can't do."""

import logging
import sys

from omegaconf import DictConfig, OmegaConf

from vitlab.distributed.process import this_process
from vitlab.errors import UserError

log = logging.getLogger(__name__)


def resolve_machine(config: DictConfig) -> None:
    """Replace each `auto` of the trainer, in place, and warn of a precision that the machine only emulates. UserError
    if the machine can't train in the precision, or the config wants more machines than were started."""
    from vitlab.config.gpus import check_gpus, choose_devices  # these import torch
    from vitlab.models.execution import best_precision, choose_fused, has_cuda, has_gpu, has_mps

    resolve_processes(config)
    trainer = config.trainer
    trainer.devices = choose_devices(trainer)
    check_gpus(trainer.accelerator, trainer.devices)
    best = best_precision(trainer.accelerator)
    if trainer.sync_batchnorm == "auto":
        trainer.sync_batchnorm = has_cuda(trainer.accelerator)
    if trainer.precision == "auto":
        is_sharded = str(OmegaConf.select(trainer, "strategy._target_")).endswith(".FullySharded")
        trainer.precision = "32-true" if is_sharded and best == "16-mixed" else best  # Lightning refuses that pair
    chosen = str(trainer.precision)
    if chosen in ("16-mixed", "16-true") and not has_gpu(trainer.accelerator):
        raise UserError(f"trainer.precision={chosen}: a CPU does not train in float16; take auto ({best} here)")
    if has_mps(trainer.accelerator) and chosen.endswith("-mixed"):
        log.warning(f"trainer.precision={chosen}: Lightning has no mixed precision on a Mac's GPU; 32-true is used")
        trainer.precision = "32-true"
    elif chosen.startswith("bf16") and not best.startswith("bf16"):
        log.warning(
            f"trainer.precision={chosen}: this machine emulates bfloat16, many times slower than float32; "
            f"trainer.precision=auto takes {best}"
        )
    choose_fused(config)


def resolve_processes(config: DictConfig) -> None:
    """Replace `auto` by the number of processes and machines that torchrun or srun started, in place. UserError if the
    config wants more machines than were started."""
    trainer, me = config.trainer, this_process()
    if trainer.num_nodes == "auto":
        trainer.num_nodes = me.nodes
    if trainer.num_nodes != me.nodes:
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes}, but this was started on one machine alone: start it on each with "
            "torchrun or srun"
        )
    if hasattr(sys, "ps1"):  # Lightning can't start processes from a notebook or an interactive session
        trainer.devices = 1 if trainer.devices == "auto" else trainer.devices
        count = trainer.devices if isinstance(trainer.devices, int) else len(trainer.devices)
        if count != 1 or trainer.strategy != "auto":
            raise UserError(
                "a notebook trains on one device, such as trainer=gpu: for several use the command line, "
                "!vitlab train trainer=ddp"
            )
    if me.launched_together and trainer.devices in ("auto", -1):
        trainer.devices = me.world_size // me.nodes
