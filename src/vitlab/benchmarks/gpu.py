"""What a GPU makes of the training step, beside what it could."""

import torch
from omegaconf import DictConfig

from vitlab.benchmarks.loops import augmented, composed, dtype_of, settle, training_as_configured
from vitlab.benchmarks.step import timm_speed, train_speed
from vitlab.benchmarks.variant import Sections, Variant, Work, timed
from vitlab.config.instantiate import build_network
from vitlab.errors import UserError
from vitlab.experiment import load_data
from vitlab.models.flops import forward_flops, peak_flops

# Names, and overrides of the training config.
CASES = {
    "ViT-B/16, 224 px, batches of 256": [
        *("model=vit_base", "model.patch_size=16", "data.image_size=224", "data.batch_size=256"),
    ],
    "vit_small, 32 px, patches of 4 px, batches of 1,024": ["model=vit_small", "data.batch_size=1024"],
}
SIDE = 8192  # of the matrices


def gpu_speeds(work: Work) -> Sections:
    """The machine's own matrix products; then each network's steps, bare and by train.py, eager and compiled. The
    first line of a network is what the data sheet's peak would come to: the ratios are model FLOPs utilisations.

    Raises:
        UserError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise UserError("name=gpu needs a CUDA GPU; name=step measures what there is")
    return sections(work, torch.device("cuda"), CASES, SIDE)


def sections(work: Work, device: torch.device, cases: dict[str, list[str]], side: int) -> Sections:
    precision = str(work.config.trainer.precision)
    dtype = dtype_of(precision)
    peak = peak_flops(device, precision)
    found: dict[str, dict[str, Variant]] = {
        f"matrix products, {precision}, TFLOP/s": {
            **({"data sheet": lambda steps: peak / 1e12} if peak else {}),
            f"{side:,} x {side:,}": _products(side, dtype, device),
        }
    }
    for name, overrides in cases.items():
        typed = [*overrides, *work.overrides]
        config = composed(typed)
        found[f"{name}, {precision}, images/s"] = _variants(work, config, typed, device, precision, peak)
    return found


def _variants(
    work: Work, config: DictConfig, typed: list[str], device: torch.device, precision: str, peak: float | None
) -> dict[str, Variant]:
    data = load_data(config)
    variants: dict[str, Variant] = {}
    if peak:
        image = torch.zeros(1, 3, config.data.image_size, config.data.image_size)
        flops = 3 * forward_flops(build_network(config.model), image, training=True)
        variants["data sheet"] = lambda steps: peak / flops
    for compiled in (False, True):
        for fused in (False, True):
            network = build_network(config.model).to(device)
            if compiled:
                network.compile()
            name = f"bare loop, {'compiled' if compiled else 'eager'}{', fused AdamW' if fused else ''}"
            variants[name] = training_as_configured(config, network, augmented(data, device), device, fused=fused)
    variants["train.py, eager"] = train_speed(typed)
    variants["train.py, compiled"] = train_speed([*typed, "compile=true"])
    if work.command.timm_train:
        variants["timm's train.py"] = timm_speed(work.command.timm_train, config, data, precision)
    return variants


def _products(side: int, dtype: torch.dtype, device: torch.device) -> Variant:
    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))

    def loop(steps: int) -> int:
        for _ in range(steps):
            left @ right
        settle(device)
        return steps

    products = timed(loop)
    return lambda steps: products(steps) * 2 * side**3 / 1e12
