"""Choose precision and kernels for a model and this machine; count operations."""

import copy
import math
import re
from importlib.util import find_spec
from typing import Any

import torch
from omegaconf import DictConfig, open_dict
from timm.layers import PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitlab.compat import compile_in_place, cpu_has_bfloat16
from vitlab.errors import UserError
from vitlab.models import fuse_timm_attention, fused_is_faster, share_drop_path
from vitlab.system import has_compiler

# TFLOP/s of dense (not sparse) bfloat16 or float16 matrix products that accumulate in float32, from NVIDIA's data
# sheets. The first key that is a whole word of the device's name counts. Lightning's own table gives the H200's speed
# with sparsity.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "GH200": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.5,
    "H100": 989.4,
    "A100": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "T4": 65.0,
    "V100-PCIE": 112.0,
    "V100": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
FUSED = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD")  # have a kernel that updates all weights

COMPILED_FROM = 300.0  # seconds
LAUNCHING = 0.008  # seconds that a host needs to launch the kernels of an eager training step


def choose_execution(config: DictConfig, model: nn.Module) -> None:
    """Apply gradient checkpointing (a UserError without support), attention kernel and torch.compile, in place."""
    if config.gradient_checkpointing:
        enable: Any = getattr(model, "set_grad_checkpointing", None)
        try:
            enable(True)
        except (TypeError, AssertionError):  # no such method, or timm's way to refuse
            raise UserError(
                f"gradient_checkpointing=true: {type(model).__name__} does not support it; give it timm's method "
                "set_grad_checkpointing(enable)"
            ) from None
    choose_attention(config, model)
    if config.compile and (fault := compile_fault(config.trainer.accelerator)):
        raise UserError(f"compile={str(config.compile).lower()} needs {fault}; compile=false trains without it")
    compile_network(model, config.compile)


def compile_network(network: nn.Module, how: bool | str) -> None:
    """Apply torch.compile in place: with true one graph is the whole model, with "blocks" one block, for all that are
    equal but for their weights and drop path. UserError if the model has no attribute `blocks`."""
    if how is True:
        compile_in_place(network)
    elif how == "blocks":
        blocks = getattr(network, "blocks", None)
        if not isinstance(blocks, nn.ModuleList | nn.Sequential):
            raise UserError(f"compile=blocks: {type(network).__name__} has no list `blocks`; take compile=true")
        share_drop_path(blocks)
        for block in blocks:
            compile_in_place(block)


def compile_fault(accelerator: object) -> str:
    """What torch.compile lacks on this machine, in a few words; empty if nothing."""
    if not has_compiler():
        return "a C++ compiler that works (cl, clang++ or g++, or that of $CXX)"
    is_gpu_without = has_cuda(accelerator) and find_spec("triton") is None
    return "the package triton" if is_gpu_without else ""


def pays_to_compile(config: DictConfig, network: nn.Module, images: int, max_seconds: float) -> bool:
    """Whether training takes at least `COMPILED_FROM` seconds on a CUDA GPU: compiling takes about half a minute.

    `images` is the number of training images, `max_seconds` the time budget. Without that the time is estimated, as if
    on one GPU: from launching the kernels, or from the FLOPs at 30 % of the GPU's peak.
    """
    trainer, data = config.trainer, config.data
    if not has_cuda(trainer.accelerator) or compile_fault(trainer.accelerator):
        return False
    batches = limited(images // data.batch_size, trainer.limit_train_batches or 1.0)
    limits = (trainer.max_epochs or 0) * batches, trainer.max_steps * trainer.accumulate_grad_batches
    steps = min((limit for limit in limits if limit > 0), default=math.inf)
    flops = 3 * data.batch_size * forward_flops(network, torch.zeros(1, 3, data.image_size, data.image_size))
    speed = 0.3 * (known_peak(torch.cuda.get_device_name()) or 100e12)
    return min(steps * max(flops / speed, LAUNCHING), max_seconds) >= COMPILED_FROM


def limited(count: int, limit: int | float, size: int = 1) -> int:
    """`count` under one of the trainer's limits: a number of batches of `size`, or a fraction."""
    return min(count, limit * size) if isinstance(limit, int) else int(count * limit)


def check_logits(config: DictConfig, network: nn.Module) -> None:
    """Raise a UserError if a model of the user's, on the CPU, gives something else than logits `[B, classes]`.

    One that raises an error is left to preflight or to the training, which show its traceback.
    """
    if config.model["_target_"].startswith("vitlab."):
        return
    side, classes = config.data.image_size, config.data.num_classes
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = copy.deepcopy(network).eval()(torch.zeros(2, 3, side, side))
    except Exception:  # the user's code may raise anything
        return
    found = f"logits {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    if found != f"logits [2, {classes}]":
        raise UserError(
            f"model: {type(network).__name__} gives {found} for 2 images: {classes} classes need logits "
            f"[2, {classes}], for example by its argument num_classes"
        )


def choose_attention(config: DictConfig, network: nn.Module) -> None:
    """Give timm's attention layers the faster kernel, in place, if the config leaves it open; ours choose it."""
    place = "gpu" if has_gpu(config.trainer.accelerator) else "cpu"
    dtype = torch.bfloat16 if str(config.trainer.precision).startswith("bf16") else torch.float32
    if config.model.get("fused_attention") is None and not fused_is_faster(place, dtype):
        fuse_timm_attention(network, False)


def choose_fused(config: DictConfig) -> None:
    """Let torch's optimizers update all weights by one kernel on a GPU, unless `optimizer.fused` says otherwise."""
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


def forward_flops(network: nn.Module, images: Tensor, *, training: bool = False) -> int:
    """Count the FLOPs of a forward pass of all images, `[B, 3, H, W]` on the model's device; a multiply-add is two.

    These are matrix products, convolutions and attention, with `training` without the patches that patch dropout
    leaves out. The model is copied, not changed.
    """
    network = copy.deepcopy(network).float().eval()
    for module in network.modules():
        if isinstance(module, PatchDropout | PatchDropoutWithIndices):
            module.train(training)
    patch_choice = torch.random.fork_rng(devices=[images.device] if images.is_cuda else [])
    # The counter knows the fused attention of GPUs only, and not nn.TransformerEncoderLayer's fast path, which runs
    # without gradients. It needs network.forward, because torch.compile replaces network(images).
    with FlopCounterMode(display=False) as counter, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), patch_choice:
        network.forward(images.float())
    return counter.get_total_flops()


def best_precision(accelerator: object) -> str:
    """Lightning's name of the fastest precision that trains well on this machine.

    bfloat16 if there are instructions for it: CUDA from Ampere on, and CPUs with AMX or AVX512-BF16 (a training step
    of vit_scratch on two cores of the latter: 152 images a second, and 87 in float32). float16 on older GPUs.
    """
    if has_cuda(accelerator):
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "32-true" if has_mps(accelerator) or not cpu_has_bfloat16() else "bf16-mixed"


def has_cuda(accelerator: object) -> bool:
    return accelerator in ("auto", "gpu") and torch.cuda.is_available()


def has_mps(accelerator: object) -> bool:
    """Whether this is the GPU of a Mac."""
    return accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available()


def has_gpu(accelerator: object) -> bool:
    return accelerator != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available())


def peak_flops(device: torch.device, precision: str) -> float | None:
    """A device's FLOP/s for matrix products; None unless the precision is a 16-bit one and the device in the table."""
    if device.type != "cuda" or not precision.startswith(("bf16", "16")):
        return None
    return known_peak(torch.cuda.get_device_name(device))


def known_peak(name: str) -> float | None:
    """Look up the 16-bit FLOP/s of a GPU by its name; None for the slower "... Laptop" and "... D" chips."""
    found = (tera for chip, tera in PEAK_TFLOPS.items() if re.search(rf"\b{chip}\b(?! (Laptop|D)\b)", name))
    return next((tera * 1e12 for tera in found), None)
