"""Weights from files, timm's cache and a hub on localhost; timm's own loading is the reference."""

import json
import shutil
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import HUB_FILE, HUB_NAME
from huggingface_hub import constants
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from vitlab.errors import UserError
from vitlab.models import timm_facts
from vitlab.weights.loading import load_pretrained, read_file, weights_to_start_from

NOWHERE = "http://127.0.0.1:9"
TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"


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
def test_state_dicts_are_found_in_every_known_layout(content: Any, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    torch.save(content, file)
    weights = read_file(file)
    assert same(weights.state, state())
    assert (weights.input, weights.classes) == ({}, None)


def test_safetensors_with_and_without_timms_config(tmp_path: Path) -> None:
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


def test_a_vitlab_checkpoint_includes_its_input_and_classes(small_run: Path) -> None:
    weights = read_file(small_run / "checkpoints" / "best.ckpt")
    assert "patch_embed.proj.weight" in weights.state
    assert not any(name.startswith("network.") for name in weights.state)
    assert weights.input["image_size"] == 32
    assert len(weights.input["mean"]) == 3
    assert weights.classes is not None
    assert len(weights.classes) == 10


def test_a_checkpoint_is_named_below_outputs(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(small_run, tmp_path / "outputs" / "demo" / "a")
    monkeypatch.chdir(tmp_path)
    model = {"_target_": "vitlab.models.VisionTransformer"}
    for named, found in (("demo/a/checkpoints/last.ckpt", "last.ckpt"), ("demo/a", "best.ckpt")):
        weights = weights_to_start_from(OmegaConf.create({"init_from": named, "init_weights": None, "model": model}))
        assert weights is not None
        assert Path(weights.input_origin) == Path("outputs/demo/a/checkpoints", found)


@pytest.mark.parametrize("key", ["init_from", "model.weights"])
def test_a_model_of_the_hub_and_a_file_are_a_conflict(key: str, tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch()
    model = {"_target_": "vitlab.models.timm_model", "name": "hf-hub:user/a", "pretrained": True, "weights": None}
    config = OmegaConf.create({"init_from": None, "init_weights": None, "model": model})
    OmegaConf.update(config, key, str(tmp_path / "a.pth"))
    with pytest.raises(UserError, match=rf"model\.name=hf-hub:user/a and {key}=.*a\.pth"):
        weights_to_start_from(config)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_checksums_reveal_an_altered_file(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    torch.save({"a": torch.full((1000,), 1.5)}, file)
    content = file.read_bytes()
    place = content.index(torch.full((2,), 1.5).numpy().tobytes())
    file.write_bytes(content[: place + 100] + b"\x01" + content[place + 101 :])
    with pytest.raises(UserError, match=r"Cannot read .* \(the checksum of .* is wrong\)"):
        read_file(file)


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state(), tmp_path / "weights.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_file(tmp_path / "weights.pth").state, state())


@pytest.mark.parametrize("config", [{}, {"model": {}, "data": {"image_size": 32}}, {"data": 3}, 7])
def test_checkpoints_without_a_config_are_refused(config: Any, tmp_path: Path) -> None:
    torch.save({"vitlab_config": config, "state_dict": state()}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"last.ckpt lacks its run's config"):
        read_file(tmp_path / "last.ckpt")


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (__import__("os").mkdir, ("was_here",))


def test_files_that_would_run_code_are_refused_unexecuted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": state(), "args": Evil()}, "evil.pth")
    with pytest.raises(UserError, match=r"Cannot read .*evil.pth \(it holds posix\.mkdir: .* never loaded"):
        read_file(Path("evil.pth"))
    assert not Path("was_here").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Cannot read"),
        (b"<html>404</html>", "Cannot read"),
        ([1, 2], "holds no tensors"),
        ({"epoch": 1}, "holds no tensors"),
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_without_weights_are_refused(content: Any, message: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(UserError, match=message if suffix == ".pth" else "Cannot read"):
        read_file(file)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing.pth does not exist"):
        read_file(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match="is a folder: pass the file in it"):
        read_file(tmp_path)


def test_the_fingerprint_depends_only_on_the_weights(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pth")
    save_file(state(), tmp_path / "a.safetensors")
    changed = state()
    changed["a.bias"][0] += 1
    torch.save(changed, tmp_path / "b.pth")
    prints = [read_file(tmp_path / name).fingerprint() for name in ("a.pth", "a.safetensors", "b.pth")]
    assert prints[0] == prints[1] != prints[2]


def test_averaged_weights_are_preferred_and_reported(tmp_path: Path) -> None:
    last = {name: tensor + 1 for name, tensor in state().items()}
    torch.save({"state_dict": last, "state_dict_ema": state()}, tmp_path / "a.pth")
    weights = read_file(tmp_path / "a.pth")
    assert same(weights.state, state())
    assert weights.origin.endswith("a.pth (its state_dict_ema)")


def test_a_checkpoint_of_timms_training_script(tmp_path: Path) -> None:
    network = timm.create_model("test_vit", pretrained=False)
    torch.save({"state_dict": network.state_dict(), "args": Namespace(lr=0.1), "epoch": 1}, tmp_path / "last.pth.tar")
    assert same(read_file(tmp_path / "last.pth.tar").state, network.state_dict())


def test_weights_come_from_the_hub_then_from_the_cache(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    expected = timm.create_model(HUB_NAME, pretrained=False).state_dict()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for endpoint in (hub, NOWHERE):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + TEMPLATE)
        state = load_pretrained(timm_facts(HUB_NAME))
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_the_error_without_hub_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", NOWHERE + TEMPLATE)
    with pytest.raises(UserError, match=rf"Download {NOWHERE}/{HUB_FILE} .*model\.weights=<file>"):
        load_pretrained(timm_facts(HUB_NAME))


def test_a_model_without_pretrained_weights() -> None:
    name = next(name for name in timm.list_models() if not timm.models.get_pretrained_cfg(name).has_weights)
    with pytest.raises(UserError, match=rf"timm has no weights of {name}"):
        load_pretrained(timm_facts(name))


# For most of timm's ViTs, the authors' own file has another format than the one on the hub.
CUSTOM = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def test_a_model_whose_authors_published_another_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert timm_facts(CUSTOM).custom_load
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", NOWHERE + TEMPLATE)
    with monkeypatch.context() as no_download:
        # One request is made here, instead of the client's many retries.
        no_download.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was asked to download"))
        with pytest.raises(UserError, match=f"Could not download the weights of {CUSTOM}"):
            load_pretrained(timm_facts(CUSTOM))

    folder = tmp_path / f"models--timm--{CUSTOM}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    file = folder / "snapshots" / ("0" * 40) / "model.safetensors"
    file.parent.mkdir(parents=True)
    expected = timm.create_model(CUSTOM, pretrained=False).state_dict()
    save_file(expected, file)
    state = load_pretrained(timm_facts(CUSTOM))
    assert all(torch.equal(state[name], expected[name]) for name in expected)

    file.write_bytes(b"cut off")
    with pytest.raises(UserError, match=rf"Cannot read {file}, the cached weights of {CUSTOM}: delete it"):
        load_pretrained(timm_facts(CUSTOM))
