"""What a ViT has learnt, read from its weights and from its attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.models.attention_maps import Attention, TokenLayout
from vitlab.models.vision_transformer import VisionTransformer


def rollout(weights: Tensor) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3).

    The heads' mean and the residual connection count half each, and the layers are multiplied.

    Args:
        weights: float `[depth, B, heads, tokens, tokens]`, rows sum to 1.

    Returns:
        How much of each token of the input (last dimension) is in each of the output: `[B, tokens, tokens]`, rows sum
        to 1.
    """
    identity = torch.eye(weights.shape[-1], device=weights.device)
    flow = identity.expand(weights.shape[1], -1, -1)
    for layer in weights.mean(dim=2):
        mixed = layer + identity
        flow = mixed / mixed.sum(dim=-1, keepdim=True) @ flow
    return flow


def gradient_rollout(weights: Tensor, gradients: Tensor) -> Tensor:
    """What speaks for a class (Chefer et al. 2021, "Generic Attention-model Explainability", equations 5 and 6).

    Attention counts where more of it would raise the class's logit: relu(gradient * attention), its mean over the
    heads, and layer by layer R <- R + mean @ R from R = 1 on.

    Args:
        weights, gradients: float `[depth, B, heads, tokens, tokens]`; the gradients of one logit.

    Returns:
        Relevance of each token of the input (last dimension) to each of the output, without the 1 that each token is
        to itself: `[B, tokens, tokens]`.
    """
    identity = torch.eye(weights.shape[-1], device=weights.device)
    relevance = identity.expand(weights.shape[1], -1, -1)
    for layer in (gradients * weights).relu().mean(dim=2):
        relevance = relevance + layer @ relevance
    return relevance - identity


def seen_by_head(flow: Tensor, attention: Attention) -> Tensor:
    """What the head reads of each patch: `[B, ..., tokens, tokens]` -> `[B, ..., rows, columns]`.

    For a class token that is its own row, for mean pooling the mean of the patches' rows, for attention pooling their
    mean as it weighs them.
    """
    rows = torch.einsum("bq,b...qk->b...k", attention.pooling, flow)[..., attention.layout.prefix :]
    return rows.reshape(*rows.shape[:-1], *attention.layout.grid)


def last_layer(attention: Attention) -> Tensor:
    """What each head of the last block takes from each patch for what the head of the network reads: `[B, heads, rows,
    columns]`."""
    return seen_by_head(attention.weights[-1], attention)


def mean_attention_distance(attention: Attention, patch_size: tuple[float, float]) -> Tensor:
    """How far each head looks (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", appendix D.7).

    The distance between a patch and those that it attends to, weighted by the attention to them, in pixels; the mean
    over patches and images. Other tokens have no place: attention to them is left out.

    Args:
        attention: Of any images.
        patch_size: Height and width of a patch in pixels.

    Returns:
        float32 `[depth, heads]`.
    """
    layout = attention.layout
    among_patches = attention.weights[..., layout.prefix :, layout.prefix :]
    distances = patch_distances(layout.grid, patch_size).to(among_patches.device)
    shares = among_patches / among_patches.sum(dim=-1, keepdim=True)
    return (shares * distances).sum(dim=-1).mean(dim=(1, 3))


def patch_distances(grid: tuple[int, int], patch_size: tuple[float, float]) -> Tensor:
    """Pixels between the centres of any two patches, float32 `[patches, patches]`."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten() * patch_size[0], columns.flatten() * patch_size[1]], dim=1).float()
    return torch.cdist(places, places)


def filter_components(network: nn.Module, count: int) -> tuple[Tensor, Tensor] | None:
    """Principal components of the filters that look at the pixels (Dosovitskiy et al. 2021, figure 7, left): those of
    the patch embedding, or of a convolutional stem's first layer.

    Returns:
        The first `count` directions in which the filters differ, of length 1, float32 `[components, 3, height, width]`,
        and the share of the filters' variance along each, float32 `[components]`. None where the network has no filters
        of colour images that are larger than a pixel.
    """
    if isinstance(network, VisionTransformer):
        filters = network.patch_embed.filters()
    else:
        projection = getattr(getattr(network, "patch_embed", None), "proj", None)
        if not isinstance(projection, nn.Conv2d):
            return None
        filters = projection.weight
    if filters.shape[1] != 3 or filters.shape[2:] == (1, 1):
        return None
    filters = filters.detach().float()
    flat = filters.flatten(1)
    _, singular, directions = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
    shares = singular.square() / singular.square().sum()
    return directions[:count].reshape(-1, *filters.shape[1:]), shares[:count]


def position_similarity(network: nn.Module, layout: TokenLayout) -> Tensor | None:
    """Cosine of the angle between any two patches' position embeddings, learned or fixed (Dosovitskiy et al. 2021,
    figure 7, centre): float32 `[patches, patches]`; None where the network adds none to its tokens."""
    positions = getattr(network, "pos_embed", None)
    patches = layout.grid[0] * layout.grid[1]
    if not isinstance(positions, Tensor) or positions.ndim != 3 or positions.shape[1] not in (patches, layout.tokens):
        return None
    embeddings = F.normalize(positions.detach()[0, -patches:].float(), dim=1)
    return embeddings @ embeddings.T
