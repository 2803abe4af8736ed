"""Exports are read back without vitlab."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from conftest import Command
from models.test_vision_transformer import images_for, make
from omegaconf import OmegaConf
from torch import nn

from vitlab.data import BatchTransform
from vitlab.errors import UserError
from vitlab.loaded_model import rebuild_network
from vitlab.models import timm_model
from vitlab.runs.checkpoint import read_checkpoint
from vitlab.weights.export_formats import save_onnx, save_timm
from vitlab.weights.loading import read_file

DATA: dict[str, Any] = {
    "image_size": 32,
    "num_classes": 10,
    "classes": [str(number) for number in range(10)],
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "interpolation": "bilinear",
}


@pytest.fixture(scope="module")
def exported(small_run: Path) -> Path:
    result = subprocess.run(
        [sys.executable, "-m", "vitlab.export", f"run={small_run}", "formats=[timm,onnx]"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for name in ("model.safetensors", "config.json", "model.onnx"):
        assert f"export/{name}" in result.stdout
    assert "logits of 64 test images differ from torch's by at most" in result.stdout
    return small_run / "export"


@pytest.fixture(scope="module")
def network(small_run: Path) -> nn.Module:
    file = small_run / "checkpoints" / "best.ckpt"
    config: Any = OmegaConf.load(small_run / "config.yaml")
    return rebuild_network(config, read_checkpoint(file), file, [])


def batch(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_vit_trained_from_scratch_loads_into_timm(exported: Path, network: nn.Module) -> None:
    theirs = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    assert isinstance(theirs, timm.models.VisionTransformer)
    torch.testing.assert_close(theirs(batch(5)), network(batch(5)), atol=1e-5, rtol=0)


def test_timm_preprocesses_images_as_the_run_did(exported: Path, small_run: Path) -> None:
    theirs = timm.create_model(f"local-dir:{exported}", pretrained=True)
    facts = timm.data.resolve_model_data_config(theirs)
    config = OmegaConf.load(small_run / "config.yaml")
    assert facts["input_size"] == (3, 32, 32)
    assert list(facts["mean"]) == list(config.data.mean)
    assert list(facts["std"]) == list(config.data.std)
    assert (facts["interpolation"], facts["crop_pct"]) == ("bicubic", 1.0)
    assert theirs.pretrained_cfg["label_names"] == list(config.data.classes)


def test_vitlab_reads_its_own_export(exported: Path, small_run: Path) -> None:
    again, checkpoint = read_file(exported / "model.safetensors"), read_file(small_run / "checkpoints" / "best.ckpt")
    assert (again.input, again.classes) == (checkpoint.input, checkpoint.classes)


def test_onnx_gives_the_logits_of_torch_for_batches_of_any_size(
    exported: Path, network: nn.Module, small_run: Path
) -> None:
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2, 7):
        (logits,) = session.run(None, {"images": batch(count).numpy()})
        np.testing.assert_allclose(logits, network(batch(count)).detach().numpy(), atol=1e-4)
    told = {prop.key: json.loads(prop.value) for prop in onnx.load(exported / "model.onnx").metadata_props}
    config = OmegaConf.load(small_run / "config.yaml")
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    by_hand = (pixels * told["scale"] - torch.tensor(told["mean"]).view(-1, 1, 1)) / torch.tensor(told["std"]).view(
        -1, 1, 1
    )
    transform = BatchTransform(
        [],
        image_size=told["image_size"],
        interpolation=told["interpolation"],
        mean=list(config.data.mean),
        std=list(config.data.std),
    )
    torch.testing.assert_close(by_hand, transform(pixels))
    assert told["classes"] == list(config.data.classes)


@pytest.mark.parametrize(
    "changes",
    [
        {"pool": "cls", "registers": 2, "stem": "shifted", "locality_attention": True},
        pytest.param(
            {"pool": "attention", "stem": "conv", "layer_scale": 0.1, "patch_dropout": 0.5},
            marks=pytest.mark.slow,  # an export takes some seconds
        ),
    ],
    ids=str,
)
def test_onnx_has_every_option_of_our_vit(changes: dict[str, Any], tmp_path: Path) -> None:
    model = make(**changes, depth=1)
    difference = save_onnx(model, DATA, images_for(model, 5), tmp_path / "model.onnx")  # of 5 images, then of one
    assert difference is not None
    assert difference < 1e-5


def test_nothing_exported_is_overwritten(exported: Path, small_run: Path, in_process: Command) -> None:
    before = (exported / "model.safetensors").read_bytes()
    result = in_process("src/vitlab/export.py", f"run={small_run}")  # needs no package of onnx's
    assert "export_2/model.safetensors" in result.stdout
    assert (exported / "model.safetensors").read_bytes() == before
    assert {file.name for file in (small_run / "export_2").iterdir()} == {"model.safetensors", "config.json"}


@pytest.mark.parametrize(
    "changes",
    [
        {"pool": "cls"},
        {"pool": "cls", "pos_embed": "sincos2d", "qk_norm": True},
        {"pos_embed": "none", "activation": "relu", "mlp_ratio": 4 / 3},
        {"mlp_ratio": 1.1},
        {"layer_scale": 0.3},
        {"pool": "cls", "registers": 2},
        {"registers": 3, "pos_embed": "sincos2d", "patch_dropout": 0.5},
    ],
    ids=str,
)
def test_our_vit_loads_into_timm_with_every_option_that_timm_has(changes: dict[str, Any], tmp_path: Path) -> None:
    model = make(**changes)
    save_timm(model, {"_target_": "vitlab.models.VisionTransformer"}, DATA, tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(theirs(images_for(model)), model(images_for(model)), atol=1e-5, rtol=0)
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "config.json"}


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_a_fine_tuned_timm_model_loads_with_plain_timm(name: str, tmp_path: Path) -> None:
    model = timm_model(name, num_classes=10, image_size=160).eval()
    save_timm(model, {"name": name, "kwargs": None}, {**DATA, "image_size": 160}, tmp_path)
    images = torch.randn(2, 3, 160, 160)
    file = str(tmp_path / "model.safetensors")
    for theirs in (
        timm.create_model(name, num_classes=10, checkpoint_path=file),
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True),
    ):
        torch.testing.assert_close(theirs.eval()(images), model(images), atol=1e-5, rtol=0)


def test_image_and_patch_size_are_restored(tmp_path: Path) -> None:
    kwargs = {"patch_size": 8}
    model = timm_model("test_vit", num_classes=10, image_size=32, kwargs=kwargs).eval()
    save_timm(model, {"name": "test_vit", "kwargs": kwargs}, DATA, tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(theirs(batch(2)), model(batch(2)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"head_hidden_dim": 8}, "hidden layer in its head (model.head_hidden_dim)"),
        ({"stem": "shifted"}, "other stem than patches (model.stem)"),
        ({"stem": "conv"}, "other stem than patches (model.stem)"),
        ({"pool": "attention"}, "sequence pooling (model.pool=attention)"),
        ({"locality_attention": True}, "locality self-attention (model.locality_attention)"),
    ],
    ids=str,
)
def test_options_that_timm_s_vit_lacks_are_refused(changes: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"timm's ViT has no {what}: use formats=[onnx]")):
        save_timm(make(**changes), {}, DATA, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_models_that_timm_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="timm has no Flatten"):
        save_timm(nn.Flatten(), {}, DATA, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_wrong_onnx_logits_is_not_written(tmp_path: Path) -> None:
    class Fickle(nn.Module):
        """Gives other logits when traced than when run."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3)) + (1.0 if torch.compiler.is_exporting() else 0.0)

    with pytest.raises(RuntimeError, match="differ by 1 from torch's"):
        save_onnx(Fickle().eval(), {**DATA, "num_classes": 3}, batch(2), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs the package onnxruntime: pip install -e '\.\[onnx\]'"):
        save_onnx(make(), DATA, batch(1), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["formats=[tflite]"], "formats=['tflite'] must be a list of timm, onnx"),
        (["formats=timm"], "formats=timm must be a list of timm, onnx: formats=[timm]"),
        (["formats=[]"], "formats=[] must be a list"),
        (["check_images=2.5"], "check_images=2.5 must be a number of images"),
        (["check_images=-1"], "check_images=-1 must be a number of images"),
        (["data.image_size=64"], "data.image_size=64: a model is exported as it was trained"),
        (["formats=[onnx]", "data.train_images=5"], "(check_images=0 leaves the images out)"),
        (["chekpoint=last"], "Did you mean 'checkpoint'?"),
        (["checkpoint=nowhere.ckpt"], "there is no file nowhere.ckpt"),
    ],
    ids=str,
)
def test_wrong_input_gets_a_sentence(arguments: list[str], message: str, small_run: Path, in_process: Command) -> None:
    result = in_process("src/vitlab/export.py", f"run={small_run}", "out=here", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert not Path("here").exists()
