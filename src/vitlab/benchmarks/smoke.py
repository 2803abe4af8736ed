"""Smoke checks: everything that vitlab does on a GPU, once and small."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab.benchmarks.measurement import ACCELERATOR, DEVICE, TRAIN, compose_config, run_process
from vitlab.benchmarks.record import Skipped
from vitlab.config.instantiate import build_network
from vitlab.errors import list_some
from vitlab.runs.checkpoint import read_checkpoint
from vitlab.runs.directory import RunDirectory

CORES = os.cpu_count() or 1
WORKERS = max(1, CORES // 4)  # chains of checks at the same time
NETWORKS = {
    "vit_scratch": ["model=vit_scratch"],
    "pool=cls, rotary positions": ["model.pool=cls", "model.rotary=true"],
    "pool=cls, relative positions": ["model.pool=cls", "model.relative_bias=true", "model.patch_dropout=0.5"],
    "locality attention, shifted patches": ["model.locality_attention=true", "model.stem=shifted"],
    "timm, 224 px": [
        *("model=vit_pretrained", "model.pretrained=false", "model.name=vit_tiny_patch16_224", "data.image_size=224")
    ],
}
GRADIENT_TOLERANCE = 0.05  # of the difference's norm, relative; 0.005 to 0.012 on a CPU with bfloat16
LOSS_TOLERANCE = 3e-3  # relative, of the mean over 50 steps; cuDNN convolves in TF32
EXACT = ("trainer.deterministic=true", "trainer.max_epochs=6")

Check = Callable[[], str | None]  # raises an AssertionError if it fails; returns a remark


@dataclass(frozen=True)
class Smoke:
    """Short runs of the demo, each in its own process, and checks of what they leave."""

    folder: Path  # of the runs
    log: Path  # for the output of the processes
    end: float  # of time.monotonic(), when the processes are killed
    overrides: Sequence[str]  # of each run

    def chains(self) -> list[Mapping[str, Check]]:
        """Checks by name. Those of a chain build on each other; chains are independent."""
        root, first = Path(TRAIN).parent, self.folder / "bf16-mixed"
        run, images = f"run={first}", f"images={first / 'figures' / '20_curves.png'}"
        return [
            {
                "train, bf16-mixed": partial(self.train, "bf16-mixed", "trainer.precision=bf16-mixed", "callbacks=ema"),
                "evaluate": partial(self.start, str(root / "evaluate.py"), run, "tta=flip"),
                "predict": partial(self.start, str(root / "predict.py"), run, images),
                "explain": partial(self.start, "-m", "vitlab.explain", run, images, f"out={first / 'explained'}"),
                "export": partial(self.start, "-m", "vitlab.export", run),
            },
            {"same seed, same weights": self.check_seed, "SIGTERM, resume, same weights": self.check_resume},
            {
                "32-true, 50 steps as on the CPU": self.check_losses,
                "train, 16-mixed": partial(self.train, "16-mixed", "trainer.precision=16-mixed"),
                "train, ddp": partial(self.train, "ddp", "trainer=ddp"),
                "train, fsdp": partial(self.train, "fsdp", "trainer=fsdp"),
            },
            {f"gradients, {name}": partial(check_gradients, overrides) for name, overrides in NETWORKS.items()},
        ]

    def start(self, *arguments: str, **options: Any) -> None:
        """Run a Python script, on its part of the cores; `options` are those of `run_process`."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise Skipped("the time of this part is over")
        python = ["env", f"OMP_NUM_THREADS={max(1, CORES // WORKERS)}", sys.executable]
        run_process([*python, *arguments], log=self.log, seconds=seconds, **options)

    def train(self, name: str, *overrides: str, **options: Any) -> None:
        if name == "16-mixed" and ACCELERATOR == "cpu":
            raise Skipped("needs a CUDA GPU")
        fixed = ["trainer.max_epochs=2", "trainer.limit_train_batches=50", "trainer.devices=1"]
        fixed += [f"trainer.accelerator={ACCELERATOR}", f"hydra.run.dir={self.folder / name}"]
        fixed.append(f"callbacks.figures.level={'light' if name == 'bf16-mixed' else 'off'}")
        self.start(TRAIN, "experiment=demo", *fixed, *self.overrides, *overrides, **options)

    def check_seed(self) -> None:
        self.train("one", *EXACT)
        self.train("two", *EXACT)
        self._check_weights("one", "two")

    def check_resume(self) -> None:
        stopped = self.folder / "stopped"
        self.train("stopped", *EXACT, stop_at=stopped / "metrics.csv")  # written after an epoch
        self.start(TRAIN, f"resume={stopped}")
        self._check_weights("one", "stopped")

    def check_losses(self) -> str:
        exact = ["trainer.max_epochs=1", "trainer.precision=32-true", "matmul_precision=highest"]
        self.train("float32", *exact)
        self.train("cpu", *exact, "trainer.accelerator=cpu")
        here, cpu = (RunDirectory(self.folder / name).epoch_rows()[0]["train/loss"] for name in ("float32", "cpu"))
        losses = f"mean loss {here}, on the CPU {cpu}"
        assert abs(here - cpu) <= LOSS_TOLERANCE * cpu, losses
        return losses

    def _check_weights(self, *names: str) -> None:
        files = (RunDirectory(self.folder / name).checkpoint("last") for name in names)
        one, two = (read_checkpoint(file)["state_dict"] for file in files)
        different = [name for name in one if not torch.equal(one[name], two[name])]
        assert not different, f"{len(different)} of {len(one)} weights differ: {list_some(different)}"


def check_gradients(overrides: Sequence[str]) -> str:
    """Compare a network's gradients in bfloat16 on `DEVICE` with those in float32 on the CPU."""
    config = compose_config(overrides)
    torch.manual_seed(0)
    network = build_network(config.model)
    images, labels = torch.randn(8, 3, config.data.image_size, config.data.image_size), torch.arange(8)

    def gradients(device: torch.device) -> Tensor:
        network.to(device).zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device is DEVICE):
            loss = F.cross_entropy(network(images.to(device)).float(), labels.to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        return torch.cat([p.grad.cpu().flatten() for p in network.parameters() if p.grad is not None])

    expected, found = gradients(torch.device("cpu")), gradients(DEVICE)
    difference = float((found - expected).norm() / expected.norm())
    assert difference < GRADIENT_TOLERANCE, f"relative difference {difference:.2g}"
    return f"relative difference {difference:.2g}"
