"""Training on a real GPU: `pytest -m gpu`. Nothing here runs without one."""

from pathlib import Path

import pytest
import torch
from conftest import SMALL_RUN, Command
from models.test_vision_transformer import make
from torch import nn

from vitlab.models import timm_model
from vitlab.runs.directory import RunDirectory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def networks() -> list[nn.Module]:
    ours = [make(), make(pool="cls"), make(locality_attention=True, stem="shifted")]
    return [*ours, timm_model("test_vit", num_classes=10, image_size=32)]


@pytest.mark.parametrize("index", range(4))
def test_gradients_in_bfloat16_are_those_of_float32_on_the_cpu(index: int) -> None:
    torch.manual_seed(0)
    images, network = torch.randn(16, 3, 32, 32), networks()[index]
    network(images).logsumexp(dim=1).sum().backward()
    expected = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    network.zero_grad()
    network.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        network(images.cuda()).float().logsumexp(dim=1).sum().backward()
    for name, parameter in network.named_parameters():
        if name in expected:
            assert parameter.grad is not None
            difference = (parameter.grad.cpu().float() - expected[name]).norm() / expected[name].norm().clamp(min=1e-3)
            assert difference < 0.05, name


@pytest.mark.parametrize(
    "options",
    [
        *(["trainer.precision=bf16-mixed"], ["trainer.precision=16-mixed"], ["trainer.precision=32-true"]),
        *(["compile=true", "model.drop_path=0.1"], ["compile=blocks", "model.drop_path=0.1"]),
    ],
    ids=" ".join,
)
def test_a_run(options: list[str], in_process: Command) -> None:
    result = in_process("train.py", *SMALL_RUN, "trainer=gpu", "callbacks=ema", *options)
    assert result.returncode == 0, result.stderr


def test_two_deterministic_runs_are_equal_to_the_last_bit(in_process: Command, tmp_path: Path) -> None:
    rows = []
    for name in ("one", "two"):
        exact = ["trainer=gpu", "trainer.deterministic=true", f"hydra.run.dir={tmp_path / name}"]
        assert in_process("train.py", *SMALL_RUN, *exact).returncode == 0
        rows.append([row["train/loss"] for row in RunDirectory(tmp_path / name).epoch_rows()])
    assert rows[0] == rows[1]
