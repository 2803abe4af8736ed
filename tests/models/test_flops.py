import timm
import torch

from vitlab.models import VisionTransformer
from vitlab.models.flops import forward_flops


def test_a_vit_costs_what_its_shapes_say() -> None:
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


def test_fused_attention_counts_as_much_as_plain() -> None:
    images = torch.zeros(1, 3, 224, 224)
    network = timm.create_model("vit_tiny_patch16_224")
    fused = forward_flops(network, images)
    for block in network.blocks:
        block.attn.fused_attn = False
    assert forward_flops(network, images) == fused
