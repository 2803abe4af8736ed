import json
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitlab.errors import UserError
from vitlab.weights.formats import read_file


def state() -> dict[str, Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, -1.0], dtype=torch.bfloat16)}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    "content",
    [
        state(),
        OrderedDict(state()),
        {"state_dict": state(), "epoch": 3, "arch": "vit"},
        {"model": state(), "optimizer": {}},
        {"state_dict": {}, "state_dict_ema": state()},
        {"state_dict": {f"module.{name}": tensor for name, tensor in state().items()}},
        {f"_orig_mod.{name}": tensor for name, tensor in state().items()},
        {**state(), "step": 7},
        {"state_dict": {f"network.{name}": tensor for name, tensor in state().items()}},
        {"state_dict": {f"model.{name}": tensor for name, tensor in state().items()}},
    ],
    ids=["bare", "ordered", "timm", "deit", "ema", "ddp", "compiled", "with a number", "network.", "model."],
)
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin"])
def test_state_dicts_wherever_they_lie(content: Any, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    torch.save(content, file)
    weights = read_file(file)
    assert same(weights.state, state())
    assert (weights.input, weights.classes) == ({}, None)


def test_safetensors_with_and_without_timm_s_config(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(state(), file)
    assert same(read_file(file).state, state())
    assert read_file(file).input == {}
    facts = {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "interpolation": "bilinear"}
    config = {"architecture": "vit", "label_names": ["x", "y"], "pretrained_cfg": {**facts, "tag": "t"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = read_file(file)
    assert weights.classes == ["x", "y"]
    expected = {"image_size": 64, "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0], "interpolation": "bilinear"}
    assert weights.input == expected


def test_a_checkpoint_of_vitlab_s_brings_its_images_and_classes_along(small_run: Path) -> None:
    weights = read_file(small_run / "checkpoints" / "best.ckpt")
    assert "patch_embed.proj.weight" in weights.state
    assert not any(name.startswith("network.") for name in weights.state)
    assert weights.input["image_size"] == 32
    assert len(weights.input["mean"]) == 3
    assert weights.classes is not None
    assert len(weights.classes) == 10


@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_an_altered_file_is_recognised_by_its_checksums(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    torch.save({"a": torch.full((1000,), 1.5)}, file)
    content = file.read_bytes()
    place = content.index(torch.full((2,), 1.5).numpy().tobytes())
    file.write_bytes(content[: place + 100] + b"\x01" + content[place + 101 :])
    with pytest.raises(UserError, match=r"can't be read as weights \(the checksum of .* is wrong\)"):
        read_file(file)


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state(), tmp_path / "weights.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_file(tmp_path / "weights.pth").state, state())


@pytest.mark.parametrize("config", [{}, {"model": {}, "data": {"image_size": 32}}, {"data": 3}, 7])
def test_a_checkpoint_without_its_run_s_config_is_refused(config: Any, tmp_path: Path) -> None:
    torch.save({"vitlab_config": config, "state_dict": state()}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"last.ckpt lacks its run's config"):
        read_file(tmp_path / "last.ckpt")


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (__import__("os").mkdir, ("was_here",))


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": state(), "args": Evil()}, "evil.pth")
    with pytest.raises(UserError, match=r"evil.pth can't be read as weights \(it holds posix\.mkdir: .* never loaded"):
        read_file(Path("evil.pth"))
    assert not Path("was_here").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "can't be read as weights"),
        (b"<html>404</html>", "can't be read as weights"),
        ([1, 2], "holds no tensors"),
        ({"epoch": 1}, "holds no tensors"),
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_files_are_refused(content: Any, message: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(UserError, match=message if suffix == ".pth" else "can't be read as weights"):
        read_file(file)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing.pth does not exist"):
        read_file(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match="is a folder: name the file in it"):
        read_file(tmp_path)


def test_the_fingerprint_tells_weights_apart(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pth")
    save_file(state(), tmp_path / "a.safetensors")
    changed = state()
    changed["a.bias"][0] += 1
    torch.save(changed, tmp_path / "b.pth")
    prints = [read_file(tmp_path / name).fingerprint() for name in ("a.pth", "a.safetensors", "b.pth")]
    assert prints[0] == prints[1] != prints[2]


def test_an_average_of_the_weights_is_taken_before_the_last_and_said(tmp_path: Path) -> None:
    last = {name: tensor + 1 for name, tensor in state().items()}
    torch.save({"state_dict": last, "state_dict_ema": state()}, tmp_path / "a.pth")
    weights = read_file(tmp_path / "a.pth")
    assert same(weights.state, state())
    assert weights.origin.endswith("a.pth (its state_dict_ema)")


def test_a_checkpoint_of_timm_s_own_training(tmp_path: Path) -> None:
    network = timm.create_model("test_vit", pretrained=False)
    torch.save({"state_dict": network.state_dict(), "args": Namespace(lr=0.1), "epoch": 1}, tmp_path / "last.pth.tar")
    assert same(read_file(tmp_path / "last.pth.tar").state, network.state_dict())
