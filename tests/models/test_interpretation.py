import math

import pytest
import torch
from models.test_vision_transformer import make
from torch import Tensor, nn

from vitlab.models.interpretation import (
    Attention,
    TokenLayout,
    filter_components,
    gradient_rollout,
    last_layer,
    mean_attention_distance,
    position_similarity,
    rollout,
    seen_by_head,
    token_layout,
)

EVERYTHING = slice(0, None)


def layer(*heads: list[list[float]]) -> Tensor:
    return torch.tensor([heads])


def test_rollout_of_two_layers_by_hand() -> None:
    first = layer(
        [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]
    )  # mean .5 .5 / .5 .5; with residual .75 .25 / .25 .75
    second = layer([[0.2, 0.8], [0.6, 0.4]], [[0.2, 0.8], [0.6, 0.4]])  # with residual .6 .4 / .3 .7
    # .6 * .75 + .4 * .25 = .55, and so on; in the other order it would be .525 .475 / .375 .625.
    expected = torch.tensor([[[0.55, 0.45], [0.4, 0.6]]])
    torch.testing.assert_close(rollout(torch.stack([first, second])), expected)


def test_gradient_rollout_of_two_layers_by_hand() -> None:
    weights = torch.stack(
        [
            layer([[0.5, 0.5], [0.25, 0.75]], [[0.5, 0.5], [0.5, 0.5]]),
            layer([[0.4, 0.6], [1.0, 0.0]], [[0.4, 0.6], [1.0, 0.0]]),
        ]
    )
    gradients = torch.stack(
        [
            layer([[2.0, -1.0], [4.0, 0.0]], [[-1.0, -1.0], [-1.0, -1.0]]),  # relu, mean of heads: .5 0 / .5 0
            layer([[0.0, 10.0], [-1.0, 5.0]], [[0.0, 10.0], [-1.0, 5.0]]),  # 0 6 / 0 0
        ]
    )
    # R = 1.5 0 / .5 1 after the first; 0 6 / 0 0 times that is 3 6 / 0 0; less the identity.
    torch.testing.assert_close(gradient_rollout(weights, gradients), torch.tensor([[[3.5, 6.0], [0.5, 0.0]]]))


def test_the_head_sees_the_class_tokens_row_or_the_pooled_patches() -> None:
    flow = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.0, 0.5, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0], [0.4, 0.0, 0.1, 0.5]]])
    weights = torch.stack([flow.unsqueeze(1), flow.unsqueeze(1).flip(-1)])
    across, down = TokenLayout(1, (1, 3), slice(0, 1)), TokenLayout(1, (3, 1), slice(1, None))
    by_class_token = attention(weights, across, [1.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(seen_by_head(flow, by_class_token), torch.tensor([[[0.2, 0.3, 0.4]]]))
    by_patches = attention(weights, down, [0.0, 1 / 3, 1 / 3, 1 / 3])
    torch.testing.assert_close(seen_by_head(flow, by_patches), torch.tensor([[[0.5 / 3], [0.6 / 3], [0.5 / 3]]]))
    by_weights = attention(weights, down, [0.0, 0.5, 0.5, 0.0])
    torch.testing.assert_close(seen_by_head(flow, by_weights), torch.tensor([[[0.25], [0.25], [0.0]]]))
    torch.testing.assert_close(last_layer(by_class_token), torch.tensor([[[[0.3, 0.2, 0.1]]]]))


def attention(weights: Tensor, layout: TokenLayout, pooling: list[float] | None = None) -> Attention:
    images = weights.shape[1]
    return Attention(weights, torch.zeros(images, 2), layout, torch.tensor([pooling or [0.0]] * images))


def test_attention_distances_in_pixels_by_hand() -> None:
    itself = torch.eye(4)
    everywhere = torch.full((4, 4), 0.25)
    neighbour = torch.eye(4)[[1, 0, 3, 2]]  # in a grid of 2 x 2: the other patch of the row
    weights = torch.stack([itself, everywhere, neighbour]).reshape(1, 1, 3, 4, 4)
    found = mean_attention_distance(attention(weights, TokenLayout(0, (2, 2), EVERYTHING)), (4.0, 8.0))
    torch.testing.assert_close(found, torch.tensor([[0.0, (0 + 4 + 8 + math.hypot(4, 8)) / 4, 8.0]]))


def test_attention_to_other_tokens_is_left_out_of_distances() -> None:
    weights = torch.zeros(1, 1, 1, 3, 3)
    weights[..., 0] = 0.9
    weights[..., 1, 2] = weights[..., 2, 1] = 0.1
    found = mean_attention_distance(attention(weights, TokenLayout(1, (1, 2), slice(0, 1))), (16.0, 16.0))
    torch.testing.assert_close(found, torch.tensor([[16.0]]))


def test_components_are_the_principal_directions_of_the_filters() -> None:
    model = make(embed_dim=48)
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(192, 2, generator=generator))[0].T
    amounts = torch.randn(48, 2, generator=generator)
    amounts = torch.linalg.qr(amounts - amounts.mean(dim=0))[0] * torch.tensor([3.0, 1.0])
    constant = torch.randn(192, generator=generator)
    model.patch_embed.proj.weight.data = (amounts @ basis + constant).reshape(48, 3, 8, 8)
    found = filter_components(model, 2)
    assert found is not None
    components, shares = found
    assert components.shape == (2, 3, 8, 8)
    torch.testing.assert_close(shares, torch.tensor([0.9, 0.1]), atol=1e-4, rtol=0)
    torch.testing.assert_close((components.flatten(1) @ basis.T).abs(), torch.eye(2), atol=1e-3, rtol=0)
    assert filter_components(nn.Linear(2, 2), 2) is None


@pytest.mark.parametrize(("stem", "side"), [("shifted", 16), ("conv", 3)])
def test_other_stems_have_filters_too(stem: str, side: int) -> None:
    found = filter_components(make(stem=stem), 5)
    assert found is not None
    components, shares = found
    assert components.shape == (5, 3, side, side)
    assert shares.sum() < 1


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("pos_embed", ["learned", "sincos2d"])
def test_similarity_uses_only_the_patches_positions(pool: str, pos_embed: str, registers: int) -> None:
    model = make(pool=pool, pos_embed=pos_embed, registers=registers)
    layout = token_layout(model, (32, 32))
    assert layout is not None
    found = position_similarity(model, layout)
    assert found is not None
    assert found.shape == (16, 16)
    assert model.pos_embed is not None
    patches = model.pos_embed[0, (1 if pool == "cls" else 0) + registers :]
    for a, b in ((0, 0), (3, 12), (15, 7)):
        torch.testing.assert_close(found[a, b], torch.cosine_similarity(patches[a], patches[b], dim=0))
    without = make(pos_embed="none")
    assert position_similarity(without, layout) is None
