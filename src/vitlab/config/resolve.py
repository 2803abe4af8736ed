"""What the config leaves to the machine, and what the machine can't do of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from vitlab.distributed.process import this_process
from vitlab.errors import UserError

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)


def resolve_machine(config: DictConfig) -> None:
    """Replaces `auto` by what this machine, or what started this process beside others, has: in place. Warns of a
    precision that the machine only emulates.

    Raises:
        UserError: it can't train in the precision asked for.
    """
    resolve_processes(config)
    trainer = config.trainer
    best = best_precision(str(trainer.accelerator))
    if trainer.sync_batchnorm == "auto":
        trainer.sync_batchnorm = _has_cuda(str(trainer.accelerator))
    if trainer.precision == "auto":
        trainer.precision = best
    chosen = str(trainer.precision)
    if not _has_gpu(str(trainer.accelerator)) and chosen in ("16", "16-true", "16-mixed"):
        raise UserError(f"trainer.precision={chosen}: a CPU does not train in float16; take auto ({best} here)")
    if chosen.startswith("bf16") and not best.startswith("bf16"):
        log.warning(
            f"trainer.precision={chosen}: this machine emulates bfloat16, many times slower than float32; "
            f"trainer.precision=auto takes {best}"
        )


def resolve_processes(config: DictConfig) -> None:
    """Replaces `auto` by the number of processes and machines that torchrun or srun started, in place.

    Raises:
        UserError: the config wants more machines.
    """
    trainer, me = config.trainer, this_process()
    if trainer.num_nodes == "auto":
        trainer.num_nodes = me.nodes
    if trainer.num_nodes != me.nodes:
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes}, but this was started on one machine alone: start it on each with "
            "torchrun or srun"
        )
    if me.has_peers and trainer.devices in ("auto", -1):
        trainer.devices = me.ranks // me.nodes


def best_precision(accelerator: str) -> str:
    """Lightning's name of the fastest precision that trains well here.

    bfloat16 where there are instructions for it: CUDA from Ampere on, and CPUs with AMX or AVX512-BF16 (a training step
    of vit_scratch on two cores of the latter: 152 images a second against 87 in float32). float16 on older GPUs.
    """
    import torch

    if _has_cuda(accelerator):
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "32-true"
    has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if has_bf16 else "32-true"


def choose_attention(config: DictConfig, network: nn.Module) -> None:
    """Takes the faster kernel for timm's attention layers, in place, where the config leaves it to the machine; ours
    look for themselves.

    Args:
        config: Without `auto`.
        network: timm's or another.
    """
    import torch

    from vitlab.models import fuse_timm_attention, fused_is_faster

    place = "gpu" if _has_gpu(str(config.trainer.accelerator)) else "cpu"
    dtype = torch.bfloat16 if str(config.trainer.precision).startswith("bf16") else torch.float32
    if config.model.get("fused_attention") is None and not fused_is_faster(place, dtype):
        fuse_timm_attention(network, False)


def _has_cuda(accelerator: str) -> bool:
    import torch

    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _has_gpu(accelerator: str) -> bool:
    import torch

    return accelerator != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available())
