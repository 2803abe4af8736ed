"""Public formats of ViT weights give the logits of the library that they come from."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionViT

from vitlab.errors import UserError
from vitlab.models import VisionTransformer
from vitlab.weights import fit_weights
from vitlab.weights.loading import read_file
from vitlab.weights.translation import with_timm_names

SIZES: dict[str, Any] = {"embed_dim": 32, "depth": 3, "num_heads": 2}
CLASSES = [str(label) for label in range(7)]
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def timm_vit(seed: int = 1) -> Any:
    """A random ViT of timm's, in which no parameter is zero."""
    network = timm.create_model(
        "vit_base_patch16_224", img_size=32, patch_size=8, num_classes=7, mlp_ratio=2.0, **SIZES
    ).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return network


def ours() -> nn.Module:
    own = {"image_size": 32, "patch_size": 8, "num_classes": 7, "mlp_ratio": 2.0, "pool": "cls", "pos_embed": "learned"}
    return VisionTransformer(**SIZES, **own).eval()


def assert_same_logits(file: Path, source: nn.Module) -> None:
    """The file gives the logits of `source` in timm's model and in vitlab's."""
    weights = read_file(file)
    for network in (timm_vit(2), ours()):
        report = fit_weights(network, weights, CLASSES)
        assert report.complete, report.describe(str(file))
        assert report.new_head == []
        torch.testing.assert_close(network(IMAGES), source(IMAGES), rtol=1e-4, atol=1e-4)


def google_arrays(network: Any, prefix: str = "") -> dict[str, np.ndarray[Any, Any]]:
    """A network of timm's as arrays of google-research/vision_transformer, whose layers flax names and shapes."""

    def dense(layer: nn.Module, name: str) -> dict[str, Tensor]:
        return {f"{name}/kernel": layer.weight.T, f"{name}/bias": layer.bias}

    def norm(layer: nn.Module, name: str) -> dict[str, Tensor]:
        return {f"{name}/scale": layer.weight, f"{name}/bias": layer.bias}

    found: dict[str, Tensor] = {
        "embedding/kernel": network.patch_embed.proj.weight.permute(2, 3, 1, 0),
        "embedding/bias": network.patch_embed.proj.bias,
        "cls": network.cls_token,
        "Transformer/posembed_input/pos_embedding": network.pos_embed,
        **norm(network.norm, "Transformer/encoder_norm"),
        **dense(network.head, "head"),
    }
    for number, block in enumerate(network.blocks):
        name, heads = f"Transformer/encoderblock_{number}", SIZES["num_heads"]
        found |= {**norm(block.norm1, f"{name}/LayerNorm_0"), **norm(block.norm2, f"{name}/LayerNorm_2")}
        for layer in (1, 2):
            found |= dense(getattr(block.mlp, f"fc{layer}"), f"{name}/MlpBlock_3/Dense_{layer - 1}")
        for part, weight, bias in zip(
            ("query", "key", "value"), block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3), strict=True
        ):
            found[f"{name}/MultiHeadDotProductAttention_1/{part}/kernel"] = weight.T.unflatten(1, (heads, -1))
            found[f"{name}/MultiHeadDotProductAttention_1/{part}/bias"] = bias.unflatten(0, (heads, -1))
        found[f"{name}/MultiHeadDotProductAttention_1/out/kernel"] = block.attn.proj.weight.T.unflatten(0, (heads, -1))
        found[f"{name}/MultiHeadDotProductAttention_1/out/bias"] = block.attn.proj.bias
    return {f"{prefix}{name}": tensor.detach().numpy() for name, tensor in found.items()}


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
def test_google_s_npz_files(prefix: str, tmp_path: Path) -> None:
    source, arrays = timm_vit(), google_arrays(timm_vit(), prefix)
    if prefix == "params/":  # big_vision's names
        for old, new in (("LayerNorm_2", "LayerNorm_1"), ("MlpBlock_3", "MlpBlock_0"), ("Attention_1", "Attention_0")):
            arrays = {name.replace(old, new): array for name, array in arrays.items()}
        arrays["params/pos_embedding"] = arrays.pop("params/Transformer/posembed_input/pos_embedding")
    np.savez(tmp_path / "vit.npz", **arrays)
    oracle = timm_vit(2)
    oracle.load_pretrained(str(tmp_path / "vit.npz"))  # timm's converter
    torch.testing.assert_close(oracle(IMAGES), source(IMAGES))
    assert_same_logits(tmp_path / "vit.npz", source)


def test_torchvision_s_vits(tmp_path: Path) -> None:
    source = TorchvisionViT(
        image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=7
    ).eval()
    nn.init.normal_(source.heads.head.weight)  # zero at first
    torch.save(source.state_dict(), tmp_path / "vit_b_16.pth")
    assert_same_logits(tmp_path / "vit_b_16.pth", source)
    again = TorchvisionViT(32, 8, 3, 2, 32, 64, num_classes=7).eval()
    assert fit_weights(
        again, read_file(tmp_path / "vit_b_16.pth"), CLASSES
    ).complete  # its own model needs no translation
    assert torch.equal(again(IMAGES), source(IMAGES))


def hugging_face_state(network: Any, prefix: str) -> dict[str, Tensor]:
    """A network of timm's under the names of Hugging Face's ViTForImageClassification."""
    state, found = network.state_dict(), {}
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
    names |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    for kind in ("weight", "bias"):
        found[f"{prefix}embeddings.patch_embeddings.projection.{kind}"] = state[f"patch_embed.proj.{kind}"]
        found[f"{prefix}layernorm.{kind}"] = state[f"norm.{kind}"]
        found[f"classifier.{kind}"] = state[f"head.{kind}"]
        for number in range(SIZES["depth"]):
            layer = f"{prefix}encoder.layer.{number}"
            for timms, theirs in names.items():
                found[f"{layer}.{theirs}.{kind}"] = state[f"blocks.{number}.{timms}.{kind}"]
            parts = state[f"blocks.{number}.attn.qkv.{kind}"].chunk(3)
            for part, tensor in zip(("query", "key", "value"), parts, strict=True):
                found[f"{layer}.attention.attention.{part}.{kind}"] = tensor.clone()
    found[f"{prefix}embeddings.cls_token"] = state["cls_token"]
    found[f"{prefix}embeddings.position_embeddings"] = state["pos_embed"]
    return found


@pytest.mark.parametrize(("prefix", "suffix"), [("vit.", ".safetensors"), ("deit.", ".bin"), ("", ".bin")])
def test_hugging_face_s_vits(prefix: str, suffix: str, tmp_path: Path) -> None:
    source, file = timm_vit(), tmp_path / f"model{suffix}"
    state = hugging_face_state(source, prefix)
    if suffix == ".bin":
        torch.save(state, file)
    else:
        save_file(state, file)
        (tmp_path / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    assert_same_logits(file, source)


def test_a_key_without_bias_leaves_the_biases_apart() -> None:
    state = hugging_face_state(timm_vit(), "vit.")
    renamed = with_timm_names({name: tensor for name, tensor in state.items() if not name.endswith("key.bias")})
    biases = {name for name in renamed if name.startswith("blocks.0.attn.") and name.endswith("bias")}
    assert biases == {f"blocks.0.attn.{part}.bias" for part in ("query", "value", "proj")}
    assert renamed["blocks.0.attn.qkv.weight"].shape == (96, 32)


def test_another_image_and_patch_size_is_resampled_and_reported(tmp_path: Path) -> None:
    np.savez(tmp_path / "vit.npz", **google_arrays(timm_vit()))
    sizes = {**SIZES, "image_size": 48, "patch_size": 4, "num_classes": 3, "mlp_ratio": 2.0}
    network = VisionTransformer(**sizes, pool="cls", pos_embed="learned")
    report = fit_weights(network, read_file(tmp_path / "vit.npz"), ["a", "b", "c"])
    assert set(report.resampled) == {"pos_embed", "patch_embed.proj.weight"}
    assert report.new_head == ["head.weight", "head.bias"]
    assert report.missing == report.unexpected == []


@pytest.mark.parametrize(
    "layout",
    [
        lambda state: {
            "teacher": {f"backbone.{n}": t for n, t in state.items()} | {"head.mlp.0.weight": torch.ones(3)}
        },
        lambda state: {"state_dict": {f"module.base_encoder.{n}": t for n, t in state.items()} | {"module.x": IMAGES}},
        lambda state: {"model_state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{n}": t for n, t in state.items()}, "optimizer": {}},
        lambda state: {"target_encoder": {f"module.{n}": t for n, t in state.items()}},
        lambda state: {"state_dict": {f"model.backbone.{n}": t for n, t in state.items()}},
    ],
    ids=["DINO", "MoCo v3", "model_state_dict", "DDP", "I-JEPA", "LightningModule"],
)
def test_checkpoints_of_other_projects(layout: Any, tmp_path: Path) -> None:
    source = timm_vit()
    torch.save(layout(source.state_dict()), tmp_path / "checkpoint.pth.tar")
    assert_same_logits(tmp_path / "checkpoint.pth.tar", source)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (__import__("os").mkdir, ("was_here",))


def write(file: Path, kind: str) -> None:
    state = {"a": torch.randn(300), "b": torch.randn(3)}
    if file.suffix == ".npz":
        np.savez(file, **{"a": np.array([Evil()]) if kind == "objects" else state["a"].numpy()})
    elif file.suffix == ".safetensors":
        save_file(state, file)
    else:
        content = {"a": Evil()} if kind == "objects" else state
        torch.save(content, file, _use_new_zipfile_serialization=file.suffix != ".old")
    if kind == "pickle":
        file.write_bytes(pickle.dumps({"a": Evil()}))


@pytest.mark.parametrize("suffix", [".pth", ".old", ".safetensors", ".npz"])
@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("pointer", "Git LFS pointer: git lfs pull"),
        ("page", "a web page"),
        ("empty", "it is empty"),
        ("half", "it is cut off"),
        ("nearly whole", "it is cut off"),
        ("objects", "objects could run code"),
        ("pickle", "objects could run code"),
    ],
)
def test_damaged_files_are_named(
    suffix: str, kind: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind in ("objects", "pickle") and suffix == ".safetensors":
        pytest.skip("it holds no objects")
    file = tmp_path / f"weights{suffix}"
    write(file, kind)
    whole = file.read_bytes()
    cut = {
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
        "page": b"\n<!DOCTYPE html><html></html>",
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "nearly whole": whole[:-5],
    }
    file.write_bytes(cut.get(kind, whole))
    with pytest.raises(UserError) as error:
        read_file(file)
    assert found in str(error.value)
    assert "weights_only" not in str(error.value)
    assert "allow_pickle" not in str(error.value)
    assert error.value.__suppress_context__  # run.log does not show torch's advice either
    assert not (tmp_path / "was_here").exists()
