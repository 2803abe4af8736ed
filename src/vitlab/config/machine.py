"""What the config leaves to the machine."""

from omegaconf import DictConfig


def resolve_machine(config: DictConfig) -> None:
    """Replaces `trainer.precision=auto` by what this machine has, in place."""
    if config.trainer.precision == "auto":
        config.trainer.precision = best_precision(str(config.trainer.accelerator))


def best_precision(accelerator: str) -> str:
    """Lightning's name of the fastest precision that trains well here.

    bfloat16 where there are instructions for it: CUDA from Ampere on, and CPUs with AMX or AVX512-BF16 (a training step
    of vit_scratch on two cores of the latter: 152 images a second against 87 in float32). float16 on older GPUs.
    """
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "32-true"
    has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if has_bf16 else "32-true"
