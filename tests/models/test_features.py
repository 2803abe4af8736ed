"""The features that heads read, checked by applying the heads to them."""

from contextlib import closing
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from vitlab.errors import UserError
from vitlab.models import VisionTransformer, timm_model
from vitlab.models.execution import compile_network
from vitlab.models.features import FeatureRecorder, features_and_logits, head_features

SIZES: dict[str, Any] = {
    **{"image_size": 16, "patch_size": 4, "num_classes": 5, "embed_dim": 24, "depth": 2, "num_heads": 2},
    **{"mlp_ratio": 2.0, "pos_embed": "learned"},
}


@pytest.mark.parametrize("hidden", [None, 32])
@pytest.mark.parametrize("pool", ["cls", "mean", "attention"])
def test_our_head_applied_to_the_features_gives_the_logits(pool: Any, hidden: int | None) -> None:
    torch.manual_seed(0)
    network = VisionTransformer(**SIZES, pool=pool, registers=2, head_hidden_dim=hidden).eval()
    features, logits = features_and_logits(network, images := torch.randn(3, 3, 16, 16))
    assert features.shape == (3, 24)
    assert not features.requires_grad
    torch.testing.assert_close(network.head(features), logits)
    torch.testing.assert_close(network(images), logits)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_vit", {}),
        ("test_vit", {"global_pool": "avg"}),  # its norm comes after pooling: fc_norm
        ("test_vit4", {"global_pool": "map"}),
        ("test_resnet", {}),
        ("test_convnext", {}),
        ("test_efficientnet", {}),
        ("deit_tiny_distilled_patch16_224", {}),  # two heads
        ("crossvit_tiny_240", {}),  # a list of heads of different widths
    ],
)
def test_features_equal_timms_pre_logits(name: str, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    side = timm.get_pretrained_cfg(name).input_size[1]
    network: Any = timm_model(name, num_classes=5, image_size=side, kwargs=arguments).eval()
    images = torch.randn(2, 3, side, side)
    wanted = network.forward_head(network.forward_features(images), pre_logits=True)
    torch.testing.assert_close(head_features(network, images), wanted)


@pytest.mark.parametrize(
    "network",
    [
        torchvision.models.resnet18(num_classes=5),
        torchvision.models.VisionTransformer(32, 16, 1, 2, 24, 48, num_classes=5),  # its head is a Sequential
    ],
)
def test_the_last_linear_layer_of_other_models_is_their_head(network: nn.Module) -> None:
    features, logits = features_and_logits(network.eval(), torch.randn(2, 3, 32, 32))
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(last(features), logits)


class Scaled(nn.Module):
    """Its logits are not the output of its last linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(48, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.flatten(1)) / 2


@pytest.mark.parametrize("network", [Scaled(), nn.Sequential(nn.Conv2d(3, 5, 4), nn.Flatten())])
def test_a_model_without_a_head_is_refused(network: nn.Module) -> None:
    with pytest.raises(UserError, match="get_classifier"):
        head_features(network, torch.randn(2, 3, 4, 4))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_declared_head_may_be_followed_by_anything() -> None:
    network = Scaled()
    network.get_classifier = lambda: network.fc  # type: ignore[assignment]
    images = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(head_features(network, images), images.flatten(1))


def test_the_linear_layer_of_a_declared_head_that_pools_reads_the_features() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 2), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)))
    network.get_classifier = lambda: network[1]  # type: ignore[assignment]
    images = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(head_features(network, images), network[0](images).mean(dim=(2, 3)))


def test_features_are_float32_in_half_precision() -> None:
    network = VisionTransformer(**SIZES, pool="mean").eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, logits = features_and_logits(network, images)
    assert (features.dtype, logits.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(features, head_features(network, images), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("how", [True, "blocks"])
def test_a_compiled_model_runs_eagerly_for_its_features(how: Any) -> None:
    network = VisionTransformer(**SIZES, pool="cls").eval()
    images = torch.randn(2, 3, 16, 16)
    wanted = head_features(network, images)
    compile_network(network, how)
    torch.testing.assert_close(head_features(network, images), wanted)


def test_a_recorder_gives_each_pass_its_own_features_and_leaves_no_hook() -> None:
    network = VisionTransformer(**SIZES, pool="mean").eval()
    batches = torch.randn(3, 3, 16, 16), torch.randn(1, 3, 16, 16)
    with closing(FeatureRecorder(network)) as recorder:
        found = []
        for images in batches:
            network(images)
            network(images.flip(-1))  # another view of the same batch, which does not count
            found.append(recorder.take())
    for features, images in zip(found, batches, strict=True):
        torch.testing.assert_close(features, head_features(network, images))
    assert not network.head._forward_hooks
