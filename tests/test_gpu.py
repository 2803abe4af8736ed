"""Training on a real GPU: `pytest -m gpu`. Nothing here runs without one."""

import pytest
import torch
from conftest import SMALL_RUN, Command

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("compiled", ["true", "blocks"])
def test_a_compiled_run_with_stochastic_depth(compiled: str, in_process: Command) -> None:
    options = ["trainer=gpu", "callbacks=ema", f"compile={compiled}", "model.drop_path=0.1", "preflight=strict"]
    result = in_process("train.py", *SMALL_RUN, *options)
    assert result.returncode == 0, result.stderr


def test_the_smoke_checks_pass(command: Command) -> None:
    result = command("-m", "vitlab.bench", "name=gpu", "parts=[smoke]", "minutes=60", timeout=900)
    assert result.returncode == 0, result.stdout
