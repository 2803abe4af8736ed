"""Single operations of a training step: attention, optimizers, patches, input."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer

from vitlab.benchmarks.measurement import DEVICE, Variant, compose_config, load, training_batches
from vitlab.benchmarks.record import Skipped
from vitlab.config.instantiate import build, build_network
from vitlab.models.attention import attend
from vitlab.models.patch_embedding import PatchEmbedding

ATTENTION = {  # images, heads, tokens, width of a head
    "vit_small, 32 px": (1024, 6, 64, 64),
    "ViT-B/16, 224 px": (256, 12, 196, 64),
}
KERNELS = {
    "plain": None,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
NETWORKS = {
    "cifar10_gpu_10min": ["experiment=cifar10_gpu_10min"],
    "ViT-B/16": ["model=vit_base", "model.patch_size=16", "data.image_size=224"],
}
OPTIMIZERS = {
    "AdamW, foreach": ["optimizer=adamw", "+optimizer.foreach=true", "+optimizer.fused=false"],
    "AdamW, fused": ["optimizer=adamw", "+optimizer.fused=true"],
    "Muon": ["optimizer=muon"],
}
PATCHES = {  # images, px per side, px of a patch, width of a token
    "32 px, 4 px patches": (1024, 32, 4, 384),
    "224 px, 16 px patches": (256, 224, 16, 768),
}


def kernel_sections(dtype: torch.dtype, tiny: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Variant]]]:
    """Yield titles and variants; with `tiny`, overrides of the training config, all of them are small."""
    for name, (images, *shape) in ATTENTION.items():
        size = (2 if tiny else images, *shape)
        variants: dict[str, Variant] = {kind: partial(_attention, size, dtype, k) for kind, k in KERNELS.items()}
        yield f"attention, forward and backward, {name}, {size[0]:,} images, ms", variants
    for name, network in NETWORKS.items():
        variants = {kind: partial(_update, [*network, *tiny, *more]) for kind, more in OPTIMIZERS.items()}
        yield f"update of all weights, {name}, ms", variants
    for name, (images, *shape) in PATCHES.items():
        size = (2 if tiny else images, *shape)
        variants = {kind: partial(_patches, size, dtype, kind) for kind in ("convolution", "matrix product")}
        yield f"patch embedding, forward and backward, {name}, {size[0]:,} images, ms", variants
    for name in ("basic", "randaugment", "strong"):
        data = ["data=synthetic", "data.train_images=4096", "data.batch_size=1024", f"augment={name}", *tiny]
        variants = {"eager": partial(_input, data, False), "compiled": partial(_input, data, True)}
        yield f"input, augment={name}, 1,024 images, ms", variants


def milliseconds(work: Callable[[], Any], steps: int) -> float:
    """Time `work` without waiting for the device in between."""
    work()  # compiles
    return 1000 * Timer("work()", globals={"work": work}).timeit(steps).mean


def _attention(size: tuple[int, ...], dtype: torch.dtype, kernel: SDPBackend | None, steps: int) -> float:
    if kernel is not None and DEVICE.type != "cuda":
        raise Skipped("needs a CUDA GPU")
    images, heads, tokens, width = size
    qkv = torch.randn(images, tokens, 3, heads, width, dtype=dtype, device=DEVICE, requires_grad=True)
    gradient = torch.randn(images, heads, tokens, width, dtype=dtype, device=DEVICE)

    def work() -> None:
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        with nullcontext() if kernel is None else sdpa_kernel(kernel):
            mixed = attend(query, key, value, fused=kernel is not None, scale=width**-0.5, dropout=0.0)
        torch.autograd.grad(mixed, qkv, gradient)

    return milliseconds(work, steps)


def _update(overrides: Sequence[str], steps: int) -> float:
    config = compose_config(overrides)
    network = build_network(config.model).to(DEVICE)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    return milliseconds(build(config.optimizer, "optimizer")(network.parameters()).step, steps)


def _patches(size: tuple[int, ...], dtype: torch.dtype, kind: str, steps: int) -> float:
    count, side, patch, width = size
    embedding = PatchEmbedding((patch, patch), 3, width).to(DEVICE)
    images = torch.randn(count, 3, side, side, device=DEVICE)
    gradient = torch.randn(count, (side // patch) ** 2, width, dtype=dtype, device=DEVICE)

    def multiply() -> Tensor:
        patches = images.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(3)
        return F.linear(patches.flatten(1, 2), embedding.proj.weight.flatten(1), embedding.proj.bias)

    def work() -> None:
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            tokens = embedding(images) if kind == "convolution" else multiply()
        torch.autograd.grad(tokens, list(embedding.parameters()), gradient)

    return milliseconds(work, steps)


def _input(overrides: Sequence[str], compiled: bool, steps: int) -> float:
    """Gather, augment and normalise batches."""
    if compiled and DEVICE.type != "cuda":
        raise Skipped("needs a CUDA GPU")
    _, data = load(compose_config(overrides))
    if compiled:
        data.transform.compile(dynamic=False)
    return milliseconds(partial(next, training_batches(data, data.transform)), steps)
