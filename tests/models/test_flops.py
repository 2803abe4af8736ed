from typing import Any

import pytest
import timm
import torch

from vitlab.models import VisionTransformer
from vitlab.models.execution import forward_flops


def test_flops_of_a_vit_follow_from_its_shapes() -> None:
    width, tokens, hidden = 64, 64, 128
    network = VisionTransformer(
        **{"image_size": 32, "patch_size": 4, "in_channels": 3, "num_classes": 10, "embed_dim": width, "depth": 2},
        **{"num_heads": 2, "mlp_ratio": hidden / width, "pool": "mean", "pos_embed": "sincos2d"},
    )
    stem = tokens * 4 * 4 * 3 * width
    block = tokens * (4 * width * width + 2 * width * hidden) + 2 * tokens * tokens * width
    expected = 2 * (stem + 2 * block + width * 10)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    assert forward_flops(network, torch.zeros(1, 3, 32, 32)) == expected
    assert forward_flops(network, torch.zeros(3, 3, 32, 32)) == 3 * expected
    assert network.training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def sizes(**changes: Any) -> dict[str, Any]:
    return {
        **{"image_size": 32, "patch_size": 4, "in_channels": 3, "num_classes": 10, "embed_dim": 64, "depth": 2},
        **{"num_heads": 2, "mlp_ratio": 2.0, "pool": "mean", "pos_embed": "sincos2d", **changes},
    }


def blocks(tokens: int) -> int:
    return 2 * (tokens * (4 * 64 * 64 + 2 * 64 * 128) + 2 * tokens * tokens * 64)


STEM, HEAD = 64 * 4 * 4 * 3 * 64, 64 * 10


@pytest.mark.parametrize(
    ("changes", "macs"),
    [
        ({"registers": 3, "layer_scale": 0.1, "patch_dropout": 0.75}, STEM + blocks(64 + 3) + HEAD),
        ({"locality_attention": True, "fused_attention": True}, STEM + blocks(64) + HEAD),
        ({"locality_attention": True, "fused_attention": False}, STEM + blocks(64) + HEAD),
        ({"stem": "shifted"}, 5 * STEM + blocks(64) + HEAD),
        ({"stem": "conv"}, 32 * 32 * 9 * 3 * 64 + 16 * 16 * 9 * 64 * 64 + blocks(64) + HEAD),
        ({"stem": "conv", "patch_size": 2}, 32 * 32 * 9 * 3 * 64 + blocks(256) + HEAD),
        ({"pool": "attention"}, STEM + blocks(64) + 2 * 64 * 64 + HEAD),
    ],
    ids=str,
)
def test_flops_of_options_follow_from_their_shapes(changes: dict[str, Any], macs: int) -> None:
    assert forward_flops(VisionTransformer(**sizes(**changes)), torch.zeros(1, 3, 32, 32)) == 2 * macs


def test_dropped_patches_cost_nothing_in_training() -> None:
    network = VisionTransformer(**sizes(patch_dropout=0.75, registers=1))
    state = torch.get_rng_state()
    assert forward_flops(network, torch.zeros(1, 3, 32, 32), training=True) == 2 * (STEM // 4 + blocks(16 + 1) + HEAD)
    assert torch.equal(torch.get_rng_state(), state)


def test_fused_attention_counts_as_much_as_plain() -> None:
    images = torch.zeros(1, 3, 224, 224)
    network = timm.create_model("vit_tiny_patch16_224")
    fused = forward_flops(network, images)
    for block in network.blocks:
        block.attn.fused_attn = False
    assert forward_flops(network, images) == fused
