"""Training on a real GPU: `pytest -m gpu`. Nothing here runs without one."""

import pytest
import torch
from conftest import Command

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def test_the_smoke_checks_pass(command: Command) -> None:
    result = command("-m", "vitlab.bench", "name=gpu", "parts=[smoke]", "minutes=60", timeout=900)
    assert result.returncode == 0, result.stdout
