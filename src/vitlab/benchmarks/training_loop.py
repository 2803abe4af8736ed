"""A bare training loop in plain torch, an upper bound of the speed."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from vitlab.benchmarks.measurement import DEVICE, Variant, endless, timed
from vitlab.config.instantiate import build, build_network
from vitlab.data import ImageDataModule
from vitlab.data.counter_rng import CounterRNG
from vitlab.data.loader import ResidentLoader
from vitlab.data.transforms import BatchTransform
from vitlab.models.execution import choose_execution

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # dtype of matrix products by Lightning's precision


def training_batches(data: ImageDataModule, transform: BatchTransform) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield full batches without end, as a run makes them: transformed images and labels on `DEVICE`."""
    arrays, size, transform = data.splits["train"], data.batch_size, transform.to(DEVICE)
    loader = ResidentLoader(arrays, size, seed=0, epoch=lambda: 0, drop_last=True, device=DEVICE, rank=0, world_size=1)
    for batch in endless(loader):
        yield transform(batch.images, CounterRNG(0, 0, batch.indices)), batch.labels


def training_steps(config: DictConfig, data: ImageDataModule) -> Variant:
    """Make a variant of whole training steps: model, precision, optimizer, loss and clipping are the config's."""
    network = build_network(config.model).to(DEVICE)
    choose_execution(config, network)
    optimizer = build(config.optimizer, "optimizer")(network.parameters())
    batches = training_batches(data, data.transform)
    dtype, clip = HALF.get(config.trainer.precision, torch.float32), config.trainer.gradient_clip_val

    def loop(steps: int) -> int:
        network.train()
        for _ in range(steps):
            images, labels = next(batches)
            with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
                loss = F.cross_entropy(network(images), labels, label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), clip)
            optimizer.step()
        return steps * data.batch_size

    return timed(loop)
