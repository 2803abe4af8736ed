"""Say in one sentence why torch can't use a GPU."""

import logging
import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import ListConfig

from vitlab.errors import UserError, first_line
from vitlab.system import WINDOWS, has_nvidia_gpu

log = logging.getLogger(__name__)


def check_gpus(accelerator: Any, devices: Any) -> None:
    """Refuse an accelerator that torch can't use; warn if "auto" takes the CPU of a machine with an NVIDIA GPU.

    Raises:
        UserError: the GPU that was asked for is not there, or torch has no kernels for it.
    """
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"trainer.accelerator=mps: {_no_mps()}; trainer=cpu uses the CPU")
    if accelerator not in ("auto", "gpu"):
        return
    if torch.cuda.is_available():
        for index in chosen_gpus(devices):
            _check_kernels(index)
    elif not torch.backends.mps.is_available():
        reason = _no_cuda()
        if accelerator == "gpu":
            raise UserError(f"trainer.accelerator=gpu: {reason or 'this machine has no GPU'}; trainer=cpu uses the CPU")
        if reason:
            log.warning(f"{reason}: the CPU is used")


def choose_devices(trainer: Any) -> Any:
    """The value of `trainer.devices`: on Windows, where NCCL is missing, "auto" is one GPU unless a strategy is
    given."""
    several = trainer.devices == "auto" and trainer.strategy == "auto" and torch.cuda.device_count() > 1
    if not (WINDOWS and several and trainer.accelerator in ("auto", "gpu")):
        return trainer.devices
    log.warning("one GPU is used, as Windows has no NCCL; trainer=ddp takes all, through gloo")
    return 1


def chosen_gpus(devices: Any) -> list[int]:
    """The CUDA devices that a value of `trainer.devices` means."""
    count = torch.cuda.device_count()
    if isinstance(devices, list | ListConfig):
        return [index for index in map(int, devices) if index < count]  # Lightning refuses the others
    return list(range(count if devices in ("auto", -1) else min(int(devices), count)))


def has_kernels(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether code for one of these architectures, such as `sm_86` or `compute_90`, runs on a GPU of this compute
    capability: machine code runs on later GPUs of the same major version, PTX (`compute_`) on all later ones ("CUDA C++
    Programming Guide", section "Application Compatibility"). With a letter it runs on this one only."""
    for name in architectures:
        if match := re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", name):
            version = int(match[2]), int(match[3])
            is_later = version <= capability and (match[1] == "compute" or version[0] == capability[0])
            if version == capability or (is_later and not match[4]):
                return True
    return False


def _check_kernels(index: int) -> None:
    """Refuse a GPU that is older or newer than torch's build; a build for AMD's GPUs counts in another way."""
    if torch.version.cuda is None:
        return
    capability, architectures = torch.cuda.get_device_capability(index), torch.cuda.get_arch_list()
    if architectures and not has_kernels(capability, architectures):
        name, version = torch.cuda.get_device_name(index), ".".join(map(str, capability))
        raise UserError(
            f"trainer: torch {torch.__version__} has no kernels for GPU {index}, {name}, compute capability {version} "
            f"(it has {', '.join(architectures)}): install another build of torch, choose other GPUs with "
            "CUDA_VISIBLE_DEVICES, or take trainer=cpu"
        )


def _no_cuda() -> str:
    """Why torch does not see the NVIDIA GPU of this machine; empty if there is none, or the user has hidden it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return ""
    if not has_nvidia_gpu():
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA, so it can't use the NVIDIA GPU (see pytorch.org)"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        reason = "it finds none"
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error).split(". ")[0].rstrip(".")
    return f"torch {torch.__version__} can't use the NVIDIA GPU ({reason})"


def _no_mps() -> str:
    built = torch.backends.mps.is_built()
    return "macOS is too old for torch, or sees no GPU" if built else "only a Mac's torch has it"
