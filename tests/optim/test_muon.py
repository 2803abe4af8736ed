"""Which parameters Muon updates, and how."""

from functools import partial
from typing import Any

import pytest
import torch
from models.test_vision_transformer import make
from optim.test_finetuning import networks
from test_classifier import make as make_classifier
from torch import nn

from vitlab.models import head_names, timm_model
from vitlab.optim import Finetuning, Muon, adamw_param_names

LR, DECAY = 0.01, 0.05
SETTINGS: dict[str, Any] = {"lr": LR, "weight_decay": DECAY, "betas": [0.9, 0.95]}
IN_BLOCKS = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")


def optimizer_of(network: nn.Module, **choice: Any) -> Any:
    optimizer = partial(Muon, **SETTINGS)
    classifier = make_classifier(network, num_classes=10, optimizer=optimizer, finetuning=Finetuning(**choice))
    return classifier.configure_optimizers()


def stepped(network: nn.Module, optimizer: Any) -> dict[str, tuple[bool, float, float]]:
    """Whether Muon updates a parameter, its learning rate and weight decay, by name, after a step."""
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {
        names[p]: ("momentum_buffer" in optimizer.state[p], round(group["lr"], 12), group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None
    }


def decays(name: str, parameter: torch.Tensor) -> float:
    return DECAY if parameter.ndim > 1 and name not in ("cls_token", "reg_token", "pos_embed") else 0.0


@pytest.mark.parametrize("network", networks(), ids=["ours", "ours, pooled", "timm's"])
def test_the_blocks_matrices_are_muon_s_and_all_else_adamw_s(network: nn.Module) -> None:
    found = stepped(network, optimizer_of(network))
    assert found == {
        name: (name.startswith("blocks.") and name.endswith(IN_BLOCKS), LR, decays(name, parameter))
        for name, parameter in network.named_parameters()
    }
    assert sum(muon for muon, _, _ in found.values()) == 4 * len(network.blocks)  # type: ignore[arg-type]


@pytest.mark.parametrize("network", networks(), ids=["ours", "ours, pooled", "timm's"])
def test_with_layers_that_learn_at_rates_of_their_own(network: Any) -> None:
    found = stepped(network, optimizer_of(network, layer_decay=0.5, head_lr_multiplier=10.0))
    assert {name for name, (muon, _, _) in found.items() if muon} == {
        f"blocks.{block}.{matrix}" for block in range(len(network.blocks)) for matrix in IN_BLOCKS
    }
    assert found["head.weight"] == (False, LR * 10, DECAY)
    last = len(network.blocks) - 1
    assert found[f"blocks.{last}.mlp.fc1.weight"] == (True, LR * 0.5, DECAY)
    assert found[f"blocks.{last - 1}.mlp.fc1.weight"] == (True, LR * 0.25, DECAY)


def test_of_a_linear_probe_nothing_is_muon_s() -> None:
    network = make(pool="cls")
    found = stepped(network, optimizer_of(network, freeze_epochs="all"))
    assert found == {"head.weight": (False, LR, DECAY), "head.bias": (False, LR, 0.0)}


def test_kernels_and_what_precedes_them_are_adamw_s() -> None:
    network = timm_model("test_resnet", num_classes=10, image_size=32)
    assert adamw_param_names(partial(Muon), network, head_names(network)) == dict(network.named_parameters()).keys()
    assert adamw_param_names(partial(torch.optim.AdamW), network, head_names(network)) == set()


def test_a_step_is_the_gradient_made_orthogonal_and_adamw_s() -> None:
    torch.manual_seed(0)
    network, twin = make(pool="cls"), make(pool="cls")
    twin.load_state_dict(network.state_dict())
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    muon = stepped(network, optimizer_of(network))
    adamw = torch.optim.AdamW(
        [{"params": [p], "weight_decay": muon[name][2]} for name, p in twin.named_parameters()],
        **{"lr": LR, "betas": (0.9, 0.95), "eps": 1e-7},
    )
    for (name, parameter), other in zip(network.named_parameters(), twin.parameters(), strict=True):
        other.grad = parameter.grad
        if muon[name][0]:
            update = (before[name] * (1 - LR * DECAY) - parameter.detach()) / LR / (0.2 * max(parameter.shape) ** 0.5)
            left, sizes, right = torch.linalg.svd(other.grad, full_matrices=False)
            told = sizes > 0.02 * sizes.norm()  # smaller ones are not at 1 yet after five iterations
            turned = left.T @ update @ right.T
            assert torch.allclose(turned[told][:, told], torch.eye(int(told.sum())), atol=0.35), name
    adamw.step()
    for (name, parameter), other in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(parameter, other, atol=1e-6) != muon[name][0], name
