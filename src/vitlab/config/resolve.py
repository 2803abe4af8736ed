"""Decide each `auto` of the config, and refuse what this machine can't do."""

import logging

from omegaconf import DictConfig

from vitlab.distributed.process import this_process
from vitlab.errors import UserError

log = logging.getLogger(__name__)


def resolve_machine(config: DictConfig) -> None:
    """Replace each `auto` of the trainer, in place, and warn of a precision that the machine only emulates.

    Raises:
        UserError: the machine can't train in the precision, or the config wants more machines than were started.
    """
    resolve_processes(config)
    trainer = config.trainer
    best = best_precision(trainer.accelerator)
    if trainer.sync_batchnorm == "auto":
        trainer.sync_batchnorm = _has_cuda(trainer.accelerator)
    if trainer.precision == "auto":
        trainer.precision = best
    chosen = str(trainer.precision)
    if chosen in ("16-mixed", "16-true") and not has_gpu(trainer.accelerator):
        raise UserError(f"trainer.precision={chosen}: a CPU does not train in float16; take auto ({best} here)")
    if chosen.startswith("bf16") and not best.startswith("bf16"):
        log.warning(
            f"trainer.precision={chosen}: this machine emulates bfloat16, many times slower than float32; "
            f"trainer.precision=auto takes {best}"
        )


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


def best_precision(accelerator: object) -> str:
    """Lightning's name of the fastest precision that trains well on this machine.

    bfloat16 if there are instructions for it: CUDA from Ampere on, and CPUs with AMX or AVX512-BF16 (a training step
    of vit_scratch on two cores of the latter: 152 images a second, and 87 in float32). float16 on older GPUs.
    """
    import torch

    from vitlab.compat import cpu_has_bfloat16

    if _has_cuda(accelerator):
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "32-true" if has_gpu(accelerator) or not cpu_has_bfloat16() else "bf16-mixed"


def _has_cuda(accelerator: object) -> bool:
    import torch

    return accelerator in ("auto", "gpu") and torch.cuda.is_available()


def has_gpu(accelerator: object) -> bool:
    import torch

    return accelerator != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available())
