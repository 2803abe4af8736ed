from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from models.test_vision_transformer import SMALL, images_for, make
from torch import Tensor, nn

from vitlab.models import timm_model
from vitlab.models.interpretation import attention_gradients, record_attention, token_layout
from vitlab.weights.export_formats import save_timm

DATA: dict[str, Any] = {"image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}


def timm_vit(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    choice = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 48,
        "depth": 3,
        "num_heads": 4,
        "num_classes": 10,
        **changes,
    }
    network = timm.models.VisionTransformer(**choice).eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def with_kernel(network: nn.Module, fused: bool) -> nn.Module:
    for block in network.blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = fused
    return network


def attention_of_timm_s_own_code(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Record the inputs of `attn_drop` in timm's plain attention."""
    seen: list[Tensor] = []
    for block in with_kernel(network, False).blocks:  # type: ignore[union-attr]
        block.attn.attn_drop.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    network(images)
    return seen


@pytest.mark.parametrize(
    "changes",
    [{}, {"qk_norm": True, "reg_tokens": 3}, {"class_token": False, "global_pool": "avg", "init_values": 0.1}],
    ids=str,
)
@pytest.mark.parametrize("fused", [True, False])
def test_recorded_attention_equals_timms_own(changes: dict[str, Any], fused: bool) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = record_attention(with_kernel(timm_vit(**changes), fused), images)
    assert found is not None
    expected = torch.stack(attention_of_timm_s_own_code(timm_vit(**changes), images))
    assert expected.shape[-1] == found.layout.tokens
    assert expected.std() > 0.01  # not the uniform attention of new weights
    torch.testing.assert_close(found.weights, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.logits, timm_vit(**changes)(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fused_attention", [True, False])
@pytest.mark.parametrize(
    "changes",
    [{"pool": "cls", "qk_norm": True}, {"pos_embed": "sincos2d"}, {"pool": "cls", "registers": 2, "layer_scale": 0.3}],
    ids=str,
)
def test_our_attention_equals_timms_with_our_exported_weights(
    changes: dict[str, Any], fused_attention: bool, tmp_path: Path
) -> None:
    model = make(**changes, fused_attention=fused_attention)
    facts = {**DATA, "num_classes": 10, "classes": [str(number) for number in range(10)], "stored_size": 32}
    save_timm(model, {}, facts, tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = images_for(model)
    found = record_attention(model, images)
    assert found is not None
    assert found.layout == token_layout(theirs, (32, 32))
    expected = torch.stack(attention_of_timm_s_own_code(theirs, images))
    torch.testing.assert_close(found.weights, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("fused_attention", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"locality_attention": True, "qk_norm": True, "rotary": True},
        {"locality_attention": True, "registers": 2, "stem": "conv"},
    ],
    ids=str,
)
def test_with_locality_no_token_attends_to_itself(changes: dict[str, Any], fused_attention: bool) -> None:
    model = make(**changes, fused_attention=fused_attention)
    images = images_for(model)
    found = record_attention(model, images)
    assert found is not None
    torch.testing.assert_close(found.logits, model(images), atol=1e-5, rtol=1e-4)
    assert not found.weights.diagonal(dim1=-2, dim2=-1).any()
    torch.testing.assert_close(found.weights.sum(dim=-1), torch.ones(3, 4, 4, found.layout.tokens))


def test_pooling_weights_reproduce_the_heads_input() -> None:
    images = images_for(make())
    even = record_attention(make(registers=2), images)
    assert even is not None
    assert even.pooling.tolist() == [[0.0] * 2 + [1 / 16] * 16] * 4
    model = make(pool="attention", registers=2)
    found = record_attention(model, images)
    assert found is not None
    assert found.pooling[:, 2:].std() > 1e-3
    tokens = model.forward_features(images)
    read = torch.einsum("bn,bnd->bd", found.pooling, tokens)
    torch.testing.assert_close(model.head(read), model(images), atol=1e-5, rtol=1e-4)
    with_gradients = attention_gradients(model, images, torch.tensor([0, 1, 2, 3]))
    assert with_gradients is not None
    torch.testing.assert_close(with_gradients[0].pooling, found.pooling)
    assert model.attn_pool is not None
    assert not model.attn_pool._forward_hooks


def test_gradients_equal_those_of_timms_own_attention() -> None:
    network = timm_vit()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    classes = torch.tensor([3, 7])
    layers = attention_of_timm_s_own_code(network, images)
    logits = network(images)  # the hooks add the layers of this pass
    expected = torch.autograd.grad(logits[0, 3] + logits[1, 7], layers[3:])
    for parameter in network.parameters():
        parameter.requires_grad_(False)  # as with finetune=head_only
    found = attention_gradients(with_kernel(network, True), images, classes)
    assert found is not None
    torch.testing.assert_close(found[1], torch.stack(expected), atol=1e-6, rtol=1e-4)
    assert not found[0].weights.requires_grad


def test_recorded_weights_include_relative_positions() -> None:
    torch.manual_seed(0)
    network = timm.models.Beit(
        img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3, use_rel_pos_bias=True
    ).eval()
    network.blocks[0].attn.relative_position_bias_table.data += 3 * torch.randn(12, 2)
    images = torch.randn(1, 3, 16, 16)
    found = record_attention(with_kernel(network, True), images)
    assert found is not None
    torch.testing.assert_close(found.weights[0], attention_of_timm_s_own_code(network, images)[0])


def test_recording_changes_nothing() -> None:
    model = make(attention_dropout=0.5)
    images = images_for(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits, state = model(images), torch.get_rng_state()
    record_attention(model, images)
    attention_gradients(model, images, torch.zeros(4, dtype=torch.int64))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model(images), logits)
    assert not images.requires_grad


@pytest.mark.parametrize(
    ("network", "prefix", "head_tokens"),
    [
        (lambda: make(pool="cls"), 1, slice(0, 1)),
        (lambda: make(pool="mean"), 0, slice(0, None)),
        (lambda: make(pool="cls", registers=2), 3, slice(0, 1)),
        (lambda: make(pool="attention", registers=2, stem="conv"), 2, slice(2, None)),
        (lambda: timm_vit(reg_tokens=4), 5, slice(0, 1)),
        (lambda: timm_vit(global_pool="avg"), 1, slice(1, None)),
        (lambda: timm_vit(global_pool="max"), 1, None),
        (lambda: timm_model("deit_tiny_distilled_patch16_224", num_classes=2, image_size=32), 2, slice(0, 2)),
    ],
)
def test_token_layouts(network: Any, prefix: int, head_tokens: slice | None) -> None:
    found = token_layout(network(), (32, 32))
    assert found is not None
    assert (found.prefix, found.head_tokens) == (prefix, head_tokens)


@pytest.mark.parametrize(
    "network",
    [
        lambda: timm.create_model("resnet10t", num_classes=2),
        lambda: timm.models.SwinTransformer(
            img_size=32, patch_size=2, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2), num_classes=2
        ),
        lambda: timm.models.ConVit(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, local_up_to_layer=1),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)),
        lambda: timm_vit(global_pool="map"),
        lambda: timm_vit(global_pool="avgmax"),
    ],
    ids=["resnet", "swin", "convit", "linear", "map", "avgmax"],
)
def test_models_without_attention_among_all_tokens_or_with_other_pooling_give_none(network: Any) -> None:
    images = torch.randn(2, 3, 32, 32)
    found = network().eval()
    assert record_attention(found, images) is None
    assert attention_gradients(found, images, torch.tensor([0, 1])) is None


def test_compiled_models_are_recorded_too() -> None:
    model = make()
    images = images_for(model)
    expected = record_attention(model, images)
    model.compile(backend="eager")
    found = record_attention(model, images)
    assert expected is not None
    assert found is not None
    assert found.weights.shape == (SMALL["depth"], 4, SMALL["num_heads"], 16, 16)
    assert torch.equal(found.weights, expected.weights)
