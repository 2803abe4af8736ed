"""What the last block of timm's ViTs leaves out, beside timm's own networks."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from vitlab.models import timm_model
from vitlab.models.flops import forward_flops
from vitlab.models.last_block import LastBlock

READ = ("test_vit", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224")


def both(name: str, **arguments: Any) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """timm's network and ours with the same weights, and images for them."""
    torch.manual_seed(0)
    oracle = timm.create_model(name, num_classes=5, **arguments)
    side = oracle.pretrained_cfg["input_size"][1]
    with torch.no_grad():
        for parameter in oracle.parameters():  # what starts at zero would hide what it is multiplied by
            parameter.add_(0.02 * torch.randn_like(parameter))
    network = timm_model(name, num_classes=5, image_size=side, kwargs=arguments)
    network.load_state_dict(oracle.state_dict())
    return oracle, network, torch.randn(3, 3, side, side)


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("arguments", [{}, {"drop_path_rate": 0.5, "proj_drop_rate": 0.0}], ids=str)
def test_logits_and_gradients_are_timm_s(name: str, arguments: dict[str, Any]) -> None:
    oracle, network, images = both(name, **arguments)
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


def test_the_feed_forward_network_of_the_last_block_works_on_what_is_read() -> None:
    oracle, network, images = both("test_vit")
    tokens, width = 1 + (160 // 16) ** 2, oracle.embed_dim
    hidden = oracle.blocks[-1].mlp.fc1.out_features
    spared = 2 * 2 * width * hidden * (tokens - 1) * len(images)
    assert forward_flops(oracle, images) - forward_flops(network, images) == spared


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("test_vit", {"global_pool": "avg"}), ("test_vit4", {"global_pool": "map"}), ("test_resnet", {})],
)
def test_networks_that_read_patches_stay_whole(name: str, arguments: dict[str, Any]) -> None:
    oracle, network, _ = both(name, **arguments)
    assert [type(module) for module in network.modules()] == [type(module) for module in oracle.modules()]
