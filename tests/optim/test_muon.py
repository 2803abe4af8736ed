"""Muon: the parameters that it updates, and its update."""

from functools import partial
from typing import Any

import pytest
import timm.optim
import torch
from models.test_vision_transformer import make
from optim.test_finetuning import networks
from test_classifier import make as make_classifier
from timm.optim.muon import zeropower_via_newtonschulz
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
    """Take a step; per parameter, whether Muon updated it, its learning rate and weight decay."""
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
    embeddings = ("cls_token", "reg_token", "pos_embed", "relative_bias.table")
    return DECAY if parameter.ndim > 1 and name not in embeddings else 0.0


@pytest.mark.parametrize("network", networks(), ids=["ours", "ours, pooled", "timm's"])
def test_muon_updates_the_matrices_of_the_blocks_and_adamw_the_rest(network: nn.Module) -> None:
    found = stepped(network, optimizer_of(network))
    assert found == {
        name: (name.startswith("blocks.") and name.endswith(IN_BLOCKS), LR, decays(name, parameter))
        for name, parameter in network.named_parameters()
    }
    assert sum(muon for muon, _, _ in found.values()) == 4 * len(network.blocks)  # type: ignore[arg-type]


@pytest.mark.parametrize("network", networks(), ids=["ours", "ours, pooled", "timm's"])
def test_muon_with_layer_wise_learning_rates(network: Any) -> None:
    found = stepped(network, optimizer_of(network, layer_decay=0.5, head_lr_multiplier=10.0))
    assert {name for name, (muon, _, _) in found.items() if muon} == {
        f"blocks.{block}.{matrix}" for block in range(len(network.blocks)) for matrix in IN_BLOCKS
    }
    assert found["head.weight"] == (False, LR * 10, DECAY)
    last = len(network.blocks) - 1
    assert found[f"blocks.{last}.mlp.fc1.weight"] == (True, LR * 0.5, DECAY)
    assert found[f"blocks.{last - 1}.mlp.fc1.weight"] == (True, LR * 0.25, DECAY)


def test_adamw_updates_all_of_a_linear_probe() -> None:
    network = make(pool="cls")
    found = stepped(network, optimizer_of(network, freeze_epochs="all"))
    assert found == {"head.weight": (False, LR, DECAY), "head.bias": (False, LR, 0.0)}


def test_adamw_updates_all_of_a_cnn() -> None:
    network = timm_model("test_resnet", num_classes=10, image_size=32)
    assert adamw_param_names(partial(Muon), network, head_names(network)) == dict(network.named_parameters()).keys()
    assert adamw_param_names(partial(torch.optim.AdamW), network, head_names(network)) == set()


def test_a_step_orthogonalises_the_gradient_and_equals_adamw_elsewhere() -> None:
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


def test_adamw_s_learning_rate_is_a_multiple_of_muon_s() -> None:
    moved = []
    for scale in (1.0, 3.0):
        torch.manual_seed(0)
        network = make()
        before = {name: p.detach().clone() for name, p in network.named_parameters()}
        optimizer = partial(Muon, **{**SETTINGS, "weight_decay": 0.0}, fallback_lr_scale=scale)
        muon = stepped(network, make_classifier(network, num_classes=10, optimizer=optimizer).configure_optimizers())
        moved.append({name: p.detach() - before[name] for name, p in network.named_parameters()})
    for name, (by_muon, _, _) in muon.items():
        torch.testing.assert_close(moved[1][name], moved[0][name] * (1 if by_muon else 3), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("has_bfloat16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_iteration_runs_in_float32_on_a_cpu_without_bfloat16(
    has_bfloat16: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitlab.optim.muon.cpu_has_bfloat16", lambda: has_bfloat16)
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 12))
    before = weight.detach().clone()
    optimizer = Muon([weight], lr=1.0, weight_decay=0.0, momentum=0.0, ns_coefficients="original", ns_steps=5)

    def closure() -> torch.Tensor:
        loss = (weight.to(dtype=torch.bfloat16, copy=True) ** 2).sum()
        assert loss.dtype == torch.bfloat16  # the training step itself keeps its precision
        loss.backward()
        return loss

    assert optimizer.step(closure).dtype == torch.bfloat16
    assert weight.grad is not None
    update = zeropower_via_newtonschulz(weight.grad, 5, [(3.4445, -4.7750, 2.0315)], dtype=dtype)
    assert torch.equal(weight, before.add(update, alpha=-0.2 * 12**0.5))


@pytest.mark.parametrize("nesterov", [False, True])
def test_matrices_of_one_shape_together_are_updated_as_timm_updates_each(nesterov: bool) -> None:
    def trained(kind: Any) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(8, 12), (12, 8), (8, 12), (6,), (8, 12)]
        weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        optimizer = kind(weights, lr=0.1, weight_decay=0.1, nesterov=nesterov)
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
        assert all(weight.grad is not None for weight in weights)
        return [weight.detach() for weight in weights]

    for ours, timms in zip(trained(Muon), trained(timm.optim.Muon), strict=True):
        assert torch.allclose(ours, timms, atol=0.02)  # timm iterates in bfloat16, also where ours does not
