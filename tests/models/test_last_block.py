"""The shortened last block of timm's models, compared with timm's own."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import nn

from vitlab.models import fuse_timm_attention, timm_model
from vitlab.models.execution import forward_flops
from vitlab.models.interpretation import record_attention
from vitlab.models.timm_models import LastBlock, shorten_last_block

NARROW = {"embed_dim": 48, "depth": 2, "num_heads": 3}  # of the blocks of a larger model
READ = (("test_vit", {}), ("deit_tiny_distilled_patch16_224", NARROW), ("deit3_small_patch16_224", NARROW))


def both(name: str, **arguments: Any) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """timm's model, the shortened one with the same weights, and images for them."""
    torch.manual_seed(0)
    oracle = timm.create_model(name, num_classes=5, **arguments)
    side = oracle.pretrained_cfg["input_size"][1]
    with torch.no_grad():
        for parameter in oracle.parameters():  # zeros would hide the factors that they multiply
            parameter.add_(0.02 * torch.randn_like(parameter))
    network = timm_model(name, num_classes=5, image_size=side, kwargs=arguments)
    network.load_state_dict(oracle.state_dict())
    return oracle, network, torch.randn(3, 3, side, side)


@pytest.mark.parametrize(("name", "sizes"), READ, ids=[name for name, _ in READ])
@pytest.mark.parametrize("arguments", [{}, {"drop_path_rate": 0.5}], ids=str)
def test_logits_and_gradients_equal_timms(name: str, sizes: dict[str, int], arguments: dict[str, Any]) -> None:
    oracle, network, images = both(name, **sizes, **arguments)
    assert isinstance(network.blocks[-1], LastBlock)
    for training in (False, True):
        logits = []
        for model in (oracle, network):
            torch.manual_seed(1)  # images that skip a branch
            out = model.train(training)(images)
            out = out if isinstance(out, torch.Tensor) else torch.stack(out)  # the distilled ones' two heads
            out.square().sum().backward()
            logits.append(out)
        torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-5)
    for (key, wanted), got in zip(oracle.named_parameters(), network.parameters(), strict=True):
        scale = max(wanted.grad.abs().max().item(), 1e-3)
        assert (wanted.grad - got.grad).abs().max().item() < 1e-4 * scale, key


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("arguments", [{}, {"qk_norm": True, "qkv_bias": False, "scale_attn_norm": True}], ids=str)
def test_both_kernels_and_the_options_of_attention(
    arguments: dict[str, Any], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle, network, images = both("test_vit", **arguments)
    wanted = oracle(images)
    kernel, calls = F.scaled_dot_product_attention, []

    def counting(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(args)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    fuse_timm_attention(network, fused)
    torch.testing.assert_close(network(images), wanted, atol=1e-5, rtol=1e-5)
    assert len(calls) == (len(network.blocks) if fused else 0)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("rate", ["attn_drop_rate", "proj_drop_rate", "drop_path_rate"])
def test_dropout_equals_timms(rate: str, fused: bool) -> None:
    oracle, network, images = both("test_vit", **{rate: 0.5})
    for model in (oracle, network):
        fuse_timm_attention(model, fused)
    torch.testing.assert_close(network.eval()(images), oracle.eval()(images), atol=1e-5, rtol=1e-5)
    tokens = torch.randn(64, 1, oracle.embed_dim)  # one token, so timm draws as many random numbers
    outputs = []
    for model in (oracle.train(), network.train()):
        torch.manual_seed(1)
        outputs.append(model.blocks[-1](tokens))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    assert (outputs[0] - network.eval().blocks[-1](tokens)).abs().max() > 1e-2


def test_unused_tokens_are_not_computed() -> None:
    oracle, network, images = both("test_vit")
    tokens, width = 1 + (160 // 16) ** 2, oracle.embed_dim
    hidden = oracle.blocks[-1].mlp.fc1.out_features
    spared = {"feed-forward": 2 * hidden, "query, projection": 2 * width, "scores, mean": 2 * tokens}
    expected = 2 * width * sum(spared.values()) * (tokens - 1) * len(images)
    assert forward_flops(oracle, images) - forward_flops(network, images) == expected


def test_attention_is_recorded_for_all_tokens() -> None:
    oracle, network, images = both("test_vit")
    wanted, got = record_attention(oracle.eval(), images), record_attention(network.eval(), images)
    assert wanted is not None
    assert got is not None
    assert got.weights.shape[-2:] == (101, 101)
    torch.testing.assert_close(got.weights, wanted.weights, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.logits, network(images), atol=1e-5, rtol=1e-5)
    assert network.blocks[-1].num_output_tokens == 1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_vit", {"global_pool": "avg"}),
        ("test_vit4", {"global_pool": "map"}),
        ("test_resnet", {}),
        ("test_vit", {"attn_layer": "diff"}),  # another attention
        ("vit_small_patch16_18x2_224", {"depth": 1, "embed_dim": 24, "num_heads": 2}),  # another block
    ],
)
def test_other_models_stay_unchanged(name: str, arguments: dict[str, Any]) -> None:
    oracle, network, _ = both(name, **arguments)
    assert [type(module) for module in network.modules()] == [type(module) for module in oracle.modules()]


def test_subclasses_of_timms_vit_stay_unchanged() -> None:
    class Own(VisionTransformer):
        """Its head may read anything."""

    network = Own(img_size=32, patch_size=16, embed_dim=24, depth=1, num_heads=2)
    shorten_last_block(network)
    assert not isinstance(network.blocks[-1], LastBlock)
