from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

from vitlab.models.attention import SelfAttention
from vitlab.models.positions import sincos2d


def tokens(count: int = 17) -> torch.Tensor:
    return torch.randn(2, count, 64, generator=torch.Generator().manual_seed(1))


def attention(**options: Any) -> SelfAttention:
    torch.manual_seed(0)
    layer = SelfAttention(64, 4, **options)
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return layer


@pytest.mark.parametrize("locality", [False, True])
def test_fused_and_plain_attention_agree_under_bfloat16(locality: bool) -> None:
    plain, fused = attention(locality=locality, fused_attention=False), attention(locality=locality)
    fused.fused_attention = True
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(plain(tokens()), fused(tokens()), atol=3e-2, rtol=2e-2)


@pytest.mark.parametrize(("count", "bfloat16", "fused"), [(63, False, False), (64, False, True), (64, True, False)])
def test_the_faster_kernel_is_chosen_on_a_cpu(
    count: int, bfloat16: bool, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, calls = F.scaled_dot_product_attention, []

    def counting(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(args)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        chosen = attention()(tokens(count))
    assert len(calls) == fused
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        torch.testing.assert_close(chosen, attention(fused_attention=fused)(tokens(count)), atol=0, rtol=0)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("fused_attention", [False, True])
def test_locality_attention_equals_timms_with_a_mask_and_scaled_queries(qk_norm: bool, fused_attention: bool) -> None:
    layer = attention(locality=True, qk_norm=qk_norm, fused_attention=fused_attention)
    assert layer.scale is not None
    factors = layer.scale.detach() * layer.head_dim**0.5  # relative to timm's own factor
    assert factors.std() > 0.1
    theirs = timm.layers.Attention(64, 4, qkv_bias=True, qk_norm=qk_norm, norm_layer=timm.layers.LayerNorm)
    theirs.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "scale"})
    if qk_norm:  # one norm for all heads: heads of one factor
        layer.scale.data = layer.scale.data[:1].expand(4).clone()
        theirs.q_norm.weight.data *= factors[0]
        theirs.q_norm.bias.data *= factors[0]
    else:
        theirs.qkv.weight.data[:64] *= factors.repeat_interleave(16).unsqueeze(1)
        theirs.qkv.bias.data[:64] *= factors.repeat_interleave(16)
    x = tokens()
    mask = torch.zeros(17, 17).fill_diagonal_(-torch.inf)
    torch.testing.assert_close(layer(x), theirs(x, attn_mask=mask), atol=1e-5, rtol=1e-4)


def test_both_kernels_give_the_temperature_the_same_gradient() -> None:
    gradients = []
    for fused in (False, True):
        layer = attention(locality=True, fused_attention=fused)
        layer(tokens()).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in layer.named_parameters()})
    assert gradients[0]["scale"].abs().min() > 1e-3
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)


def test_the_initial_temperature_equals_plain_attention() -> None:
    local, plain = SelfAttention(64, 4, locality=True), SelfAttention(64, 4)
    assert local.scale is not None
    plain.load_state_dict({name: value for name, value in local.state_dict().items() if name != "scale"})
    # Two tokens attend to each other, with or without a temperature.
    x = tokens(2)
    _, _, value = plain.qkv(x).chunk(3, dim=-1)
    torch.testing.assert_close(local(x), local.proj(value.flip(1)))
    assert local.scale.tolist() == [0.25] * 4


def test_mimetic_attention_starts_local_and_similar() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(192, 3)
    attention.initialise_mimetically()
    query, key, value = attention.qkv.weight.double().split(192)
    through = (attention.proj.weight.double() @ value).T.detach()  # what a token adds of itself
    assert through.diagonal().mean() == pytest.approx(-0.4, abs=0.03)
    assert (through - torch.diag(through.diagonal())).std() == pytest.approx(0.4 * 192**-0.5, rel=0.05)
    for rows in range(0, 192, 64):
        product = (query[rows : rows + 64].T @ key[rows : rows + 64]).detach()
        assert torch.linalg.matrix_rank(product) == 64
        assert product.diagonal().mean() > 0.3

    with torch.no_grad():
        attention.qkv.bias.zero_()
    positions = sincos2d(192, (8, 8))
    tokens = F.layer_norm(positions + torch.randn(200, 64, 192), (192,))
    query, key, _ = attention.qkv(tokens).unflatten(-1, (3, 3, 64)).unbind(2)
    weights = torch.softmax(torch.einsum("bihd,bjhd->bhij", query, key) / 8, dim=-1).mean(dim=(0, 1))
    places = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))
    distance = torch.cdist(places, places)
    itself, near, far = (
        weights[(distance >= low) & (distance < high)].mean() for low, high in ((0, 0.5), (0.5, 1.5), (5, 20))
    )
    assert itself > 2 * near
    assert near > 1.2 * far
