"""GPUs that torch can't use are said in one sentence, with torch's answers put in by hand."""

import logging
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from vitlab.compat import is_compiled
from vitlab.config import gpus
from vitlab.config.compose import compose_training
from vitlab.config.gpus import check_gpus, choose_devices, chosen_gpus, has_kernels
from vitlab.errors import UserError
from vitlab.loaded_model import rebuild_network
from vitlab.models import execution
from vitlab.runs.checkpoint import CONFIG_KEY, read_checkpoint

WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]  # of torch for CUDA 13


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((6, 1), WHEEL, False),  # GTX 1080
        ((7, 0), WHEEL, False),  # V100
        ((7, 5), WHEEL, True),
        ((8, 7), WHEEL, True),  # by the machine code for 8.6
        ((8, 9), ["sm_90"], False),
        ((9, 0), ["sm_80"], False),  # newer than all of torch's
        ((9, 0), ["sm_80", "compute_80"], True),  # by PTX
        ((12, 1), WHEEL, True),
        ((13, 0), WHEEL, True),  # by PTX
        ((13, 0), WHEEL[:-1], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100a", "compute_90a"], False),  # with a letter for this one only
        ((8, 0), ["gfx90a"], False),
    ],
)
def test_which_kernels_run_on_a_gpu(capability: tuple[int, int], architectures: list[str], runs: bool) -> None:
    assert has_kernels(capability, architectures) == runs


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A current GPU, and an old one that drives the screen."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: WHEEL)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: ((8, 9), (6, 1))[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: ("NVIDIA RTX 4090", "NVIDIA GTX 1050")[index])
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.parametrize("devices", ["auto", -1, 2, [1]])
def test_a_gpu_without_kernels_is_refused(devices: object, two_gpus: None) -> None:
    with pytest.raises(UserError, match=r"GPU 1, NVIDIA GTX 1050, compute capability 6\.1.*sm_75.*trainer=cpu"):
        check_gpus("auto", devices)


@pytest.mark.parametrize("devices", [1, [0]])
def test_only_the_gpus_of_the_run_count(devices: object, two_gpus: None) -> None:
    check_gpus("gpu", devices)


def test_amd_and_cpu_runs_are_not_checked(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    check_gpus("cpu", "auto")
    monkeypatch.setattr(torch.version, "cuda", None)
    check_gpus("auto", "auto")


def test_devices_that_are_not_there_are_left_to_lightning(two_gpus: None) -> None:
    assert chosen_gpus(8) == [0, 1]
    assert chosen_gpus(OmegaConf.create([1, 5])) == [1]


@pytest.fixture
def hidden_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with an NVIDIA GPU that torch does not see."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpus, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def init() -> None:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
            "downloading and installing a new version."
        )

    monkeypatch.setattr(torch.cuda, "init", init)
    return monkeypatch


def test_an_old_driver_is_said_and_refused_if_a_gpu_was_asked_for(
    hidden_gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    check_gpus("auto", "auto")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "driver on your system is too old (found version 11040)): the CPU is used" in record.getMessage()
    with pytest.raises(UserError, match=r"found version 11040.*trainer=cpu"):
        check_gpus("gpu", 1)
    caplog.clear()
    check_gpus("cpu", 1)
    assert not caplog.records


def test_a_build_of_torch_without_cuda_is_said(
    hidden_gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hidden_gpu.setattr(torch.version, "cuda", None)
    check_gpus("auto", "auto")
    assert "build without CUDA" in caplog.text


@pytest.mark.parametrize("value", ["", "-1", " "])
def test_gpus_that_the_user_has_hidden_are_no_surprise(
    value: str, hidden_gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hidden_gpu.setenv("CUDA_VISIBLE_DEVICES", value)
    check_gpus("auto", "auto")
    assert not caplog.records
    with pytest.raises(UserError, match="trainer=cpu"):
        check_gpus("gpu", 1)


def test_a_machine_without_a_gpu_is_said_only_if_one_was_asked_for(
    hidden_gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hidden_gpu.setattr(gpus, "has_nvidia_gpu", lambda: False)
    check_gpus("auto", "auto")
    assert not caplog.records
    with pytest.raises(UserError, match="no GPU"):
        check_gpus("gpu", 1)


def test_on_windows_one_of_several_gpus_is_used(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    default, ddp = (compose_training([f"trainer={name}", "name=x"]).trainer for name in ("default", "ddp"))
    assert choose_devices(default) == "auto"
    monkeypatch.setattr(gpus, "WINDOWS", True)
    assert (choose_devices(default), choose_devices(ddp)) == (1, "auto")


# torch.compile


@pytest.mark.parametrize("lacking", ["a C++ compiler", "triton"])
def test_compile_auto_leaves_out_what_the_machine_can_t_compile(
    lacking: str, two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_training(["data=synthetic", "model=vit_scratch", "trainer.max_epochs=1000", "name=x"])
    network = torch.nn.Linear(3, 2)
    monkeypatch.setattr(execution, "forward_flops", lambda *_: 10**12)
    monkeypatch.setattr(execution, "has_compiler", lambda: True)
    monkeypatch.setattr(execution, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA RTX 4090")
    assert execution.pays_to_compile(config, network, 50_000, 1e9)
    if lacking == "triton":
        monkeypatch.setattr(execution, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(execution, "has_compiler", lambda: False)
    assert lacking in execution.compile_fault("auto")
    assert not execution.pays_to_compile(config, network, 50_000, 1e9)
    OmegaConf.update(config, "compile", True)
    with pytest.raises(UserError, match=f"compile=true needs.*{lacking.replace('+', '.')}.*compile=false"):
        execution.choose_execution(config, network)


def test_a_compiled_run_is_evaluated_without_a_compiler(
    small_run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = small_run / "checkpoints" / "best.ckpt"
    checkpoint = read_checkpoint(file)
    config = OmegaConf.create({**checkpoint[CONFIG_KEY], "compile": True})
    monkeypatch.setattr(execution, "has_compiler", lambda: False)
    assert not is_compiled(rebuild_network(config, checkpoint, file, []))
    assert "not compiled" in caplog.text
    monkeypatch.setattr(execution, "has_compiler", lambda: True)
    assert is_compiled(rebuild_network(config, checkpoint, file, []))
