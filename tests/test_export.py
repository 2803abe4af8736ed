"""Exports are read back without vitlab."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from conftest import ROOT, Command
from models.test_vision_transformer import images_for, make
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from vitlab.arguments.command import read_command
from vitlab.data import BatchTransform
from vitlab.data.decoding import read_image, to_square
from vitlab.errors import UserError
from vitlab.loaded_model import LoadedModel, open_model, rebuild_network
from vitlab.models import timm_facts, timm_model
from vitlab.runs.checkpoint import read_checkpoint
from vitlab.weights.export_formats import onnx_packages, save_onnx, save_timm, save_torch_export, trace
from vitlab.weights.loading import read_file
from vitlab.weights.standalone import Reference, StandaloneModel

DATA: dict[str, Any] = {
    "image_size": 32,
    "stored_size": 32,
    "num_classes": 10,
    "classes": [str(number) for number in range(10)],
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "interpolation": "bilinear",
}


@pytest.fixture(scope="module")
def exported(small_run: Path) -> Path:
    result = subprocess.run(
        [sys.executable, "-m", "vitlab.export", f"run={small_run}", "formats=[timm,onnx,torch_export]", "license=mit"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for name in ("README.md", "model.safetensors", "config.json", "model.onnx", "model.pt2"):
        assert f"export/{name}" in result.stdout
    assert result.stdout.count("logits of 64 test images differ from the run's by at most") == 2
    assert result.stdout.count("64 have the same class") == 2
    return small_run / "export"


@pytest.fixture(scope="module")
def network(small_run: Path) -> nn.Module:
    file = small_run / "checkpoints" / "best.ckpt"
    config: Any = OmegaConf.load(small_run / "config.yaml")
    return rebuild_network(config, read_checkpoint(file), file, [])


def open_run(run: Path | str) -> LoadedModel:
    return open_model(*read_command("predict", [f"run={run}", "images=[]", "trainer=cpu", "trainer.precision=32-true"]))


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


def photo(folder: Path, name: str = "photo.jpg") -> Path:
    """An oblong image with structure, larger than any model's input."""
    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    small.resize((151, 97), Image.Resampling.BICUBIC).save(folder / name)
    return folder / name


def test_onnx_and_torch_export_classify_images_of_any_size_as_predict_does(exported: Path, small_run: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(exported / "model.pt2").module()
    model = open_run(small_run)
    image = read_image(photo(exported.parent))
    expected = model.logits(torch.from_numpy(to_square(image, 32)).unsqueeze(0))
    pixels = np.asarray(image).transpose(2, 0, 1)[None]
    for count in (1, 3):
        logits, probabilities = session.run(None, {"images": np.repeat(pixels, count, axis=0)})
        np.testing.assert_allclose(logits, expected.numpy().repeat(count, axis=0), atol=1e-2)  # a pixel may be rounded
        np.testing.assert_allclose(probabilities, torch.from_numpy(logits).softmax(dim=1), atol=1e-6)
        theirs = program(torch.from_numpy(np.repeat(pixels, count, axis=0)))
        np.testing.assert_allclose(theirs[0].numpy(), logits, atol=1e-4)
        np.testing.assert_allclose(theirs[1].numpy(), probabilities, atol=1e-4)


def test_the_card_s_python_classifies_a_photo_as_vitlab_does(exported: Path, small_run: Path) -> None:
    """Each block as it stands, in a process that has no vitlab."""
    image = to_square(read_image(photo(exported)), 32)
    model = open_run(small_run)
    probabilities = model.logits(torch.from_numpy(image).unsqueeze(0)).softmax(dim=1)[0]
    blocks = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), flags=re.DOTALL)
    code = "\n".join(["import sys", "sys.modules['vitlab'] = None", *blocks])
    code = code.replace("hf-hub:<user>/<name>", f"local-dir:{exported}")
    result = subprocess.run([sys.executable, "-c", code], cwd=exported, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [name for name, _ in lines] == [model.classes[probabilities.argmax()]] * 3
    assert [float(value) for _, value in lines] == pytest.approx([probabilities.max().item()] * 3, abs=0.01)


def test_onnx_describes_itself_and_names_no_folder_of_this_machine(exported: Path, small_run: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    (images,), outputs = model.graph.input, model.graph.output
    assert (images.name, images.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == ["batch", 3, "height", "width"]
    assert [output.name for output in outputs] == ["logits", "probabilities"]
    told = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    assert told == {"classes": list(OmegaConf.load(small_run / "config.yaml").data.classes)}
    assert "uint8" in model.doc_string
    for name in ("model.onnx", "model.pt2"):
        assert str(ROOT).encode() not in (exported / name).read_bytes()


@pytest.mark.parametrize(
    ("stored", "size", "interpolation"), [(32, 32, "bicubic"), (48, 160, "bilinear"), (64, 24, "bicubic")]
)
def test_preprocessing_in_the_graph_is_pillow_s_and_torchvision_s(stored: int, size: int, interpolation: str) -> None:
    data = {**DATA, "stored_size": stored, "image_size": size, "interpolation": interpolation}
    transform = BatchTransform([], **{key: data[key] for key in ("image_size", "interpolation", "mean", "std")})
    model = StandaloneModel(nn.Identity(), data)
    draw = np.random.default_rng(0)
    for sides in ((stored, stored), (100, 61), (37, 90), (8, 8)):
        coarse = Image.fromarray(draw.integers(0, 256, (7, 7, 3), dtype=np.uint8))
        image = coarse.resize(sides, Image.Resampling.BICUBIC)
        expected = transform(torch.from_numpy(to_square(image, stored)).unsqueeze(0))
        given, _ = model(torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0))
        levels = ((given - expected) * torch.tensor(data["std"]).view(-1, 1, 1) * 255).abs()
        assert levels.max() < 2.01
        rounded = (levels > 0.01).float().mean()
        assert rounded < 0.15  # Pillow 13 resizes tall images vertically first, earlier ones horizontally
        assert rounded == 0 or sides != (stored, stored) or size != stored


VIT_OPTIONS = [
    {
        **{"pool": "cls", "registers": 2, "stem": "shifted", "locality_attention": True},
        **{"rotary": True, "relative_bias": True},
    },
    pytest.param(
        {"pool": "attention", "stem": "conv", "layer_scale": 0.1, "patch_dropout": 0.5},
        marks=pytest.mark.slow,  # an export takes some seconds
    ),
    pytest.param({"pos_embed": "sincos2d", "qk_norm": True, "head_hidden_dim": 8}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("changes", VIT_OPTIONS, ids=str)
def test_onnx_and_torch_export_have_every_option_of_our_vit(changes: dict[str, Any], tmp_path: Path) -> None:
    check_export(make(**changes, depth=1), DATA, tmp_path)


@pytest.mark.slow  # an export takes some seconds
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_onnx_and_torch_export_have_timm_s_models(name: str, tmp_path: Path) -> None:
    model = timm_model(name, num_classes=10, image_size=64).eval()
    check_export(model, {**DATA, "image_size": 64}, tmp_path)


def check_export(network: nn.Module, data: dict[str, Any], folder: Path) -> None:
    model = StandaloneModel(network, data)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        reference = Reference(model, images, model(images)[0])
    program = trace(model)
    for save, name in ((save_onnx, "model.onnx"), (save_torch_export, "model.pt2")):
        agreement = save(program, data["classes"], reference, folder / name)
        assert agreement is not None
        assert agreement.difference < 1e-5
        assert agreement.same_class == agreement.images == 5


def test_nothing_exported_is_overwritten(exported: Path, small_run: Path, in_process: Command) -> None:
    before = (exported / "model.safetensors").read_bytes()
    result = in_process("src/vitlab/export.py", f"run={small_run}")  # needs no package of onnx's
    assert "export_2/model.safetensors" in result.stdout
    assert (exported / "model.safetensors").read_bytes() == before
    files = {file.name for file in (small_run / "export_2").iterdir()}
    assert files == {"README.md", "model.safetensors", "config.json"}


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
def test_a_fine_tuned_timm_model_loads_with_plain_timm(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = replace(timm_facts(name), crop_mode="squash")  # as of many of timm's models
    monkeypatch.setattr("vitlab.weights.export_formats.timm_facts", lambda _: known)
    model = timm_model(name, num_classes=10, image_size=160).eval()
    save_timm(model, {"name": name, "kwargs": None}, {**DATA, "image_size": 160}, tmp_path)
    images = torch.randn(2, 3, 160, 160)
    file = str(tmp_path / "model.safetensors")
    for theirs in (
        timm.create_model(name, num_classes=10, checkpoint_path=file),
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True),
    ):
        torch.testing.assert_close(theirs.eval()(images), model(images), atol=1e-5, rtol=0)
    facts = timm.data.resolve_model_data_config(theirs)
    assert (facts["crop_mode"], facts["crop_pct"]) == ("center", 1.0)


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
        ({"rotary": True}, "rotary positions (model.rotary)"),
        ({"relative_bias": True}, "relative positions (model.relative_bias)"),
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


def test_a_model_with_wrong_logits_is_not_written(tmp_path: Path) -> None:
    class Fickle(StandaloneModel):
        """Gives other logits when traced than when run; without resizing, an export takes a second less."""

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = images.float().mean(dim=(2, 3)) + (1.0 if torch.compiler.is_exporting() else 0.0)
            return logits, logits.softmax(dim=1)

    model = Fickle(nn.Identity(), DATA)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    reference, program = Reference(model, images, model(images)[0]), trace(model)
    for save, name in ((save_onnx, "model.onnx"), (save_torch_export, "model.pt2")):
        with pytest.raises(RuntimeError, match="differ by 1 from torch's"):
            save(program, DATA["classes"], reference, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_torch_cannot_trace_gets_a_sentence() -> None:
    class Branching(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3)) if images.sum().item() > 0 else images.amax(dim=(2, 3))

    with pytest.raises(UserError, match="can't trace Branching"):
        trace(StandaloneModel(Branching(), DATA))


def test_a_model_larger_than_a_file_of_onnx_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlab.weights.export_formats.ONNX_LIMIT", 1000)
    model = StandaloneModel(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), DATA)
    with pytest.raises(UserError, match="torch_export"):
        save_onnx(trace(model), DATA["classes"], Reference(model, torch.empty(0), torch.empty(0)), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r'needs the package onnxruntime: pip install -e "\.\[onnx\]"'):
        onnx_packages()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["formats=[tflite]"], "formats=['tflite'] must be a list of timm, onnx, torch_export"),
        (["formats=timm"], "formats=timm must be a list of timm, onnx, torch_export: formats=[timm]"),
        (["formats=[]"], "formats=[] must be a list"),
        (["check_images=2.5"], "check_images=2.5 must be a number of images"),
        (["check_images=-1"], "check_images=-1 must be a number of images"),
        (["data.image_size=64"], "leave out data.image_size"),
        (["model.depth=3"], "model.depth=3: a model is exported as it was trained"),
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
