"""Interpret a ViT by attention rollout, distances, filters and positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.models.attention_maps import Attention, TokenLayout
from vitlab.models.vision_transformer import VisionTransformer


def rollout(weights: Tensor) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3).

    Each layer is the mean of the residual connection and of the heads' mean; the layers are multiplied.

    Args:
        weights: float `[depth, B, heads, tokens, tokens]`, rows sum to 1.

    Returns:
        The part of each input token (last dimension) in each output token: `[B, tokens, tokens]`, rows sum to 1.
    """
    identity = torch.eye(weights.shape[-1], device=weights.device)
    flow = identity.expand(weights.shape[1], -1, -1)
    for layer in weights.mean(dim=2):
        mixed = layer + identity
        flow = mixed / mixed.sum(dim=-1, keepdim=True) @ flow
    return flow


def gradient_rollout(weights: Tensor, gradients: Tensor) -> Tensor:
    """Relevance for a class (Chefer et al. 2021, "Generic Attention-model Explainability", equations 5 and 6).

    Attention counts if more of it would raise the class's logit: relu(gradient * attention), averaged over the heads,
    and layer by layer R <- R + mean @ R, starting from R = 1.

    Args:
        weights, gradients: float `[depth, B, heads, tokens, tokens]`; the gradients of one logit.

    Returns:
        Relevance of each input token (last dimension) to each output token, without the initial 1 of each token for
        itself: `[B, tokens, tokens]`.
    """
    identity = torch.eye(weights.shape[-1], device=weights.device)
    relevance = identity.expand(weights.shape[1], -1, -1)
    for layer in (gradients * weights).relu().mean(dim=2):
        relevance = relevance + layer @ relevance
    return relevance - identity


def seen_by_head(flow: Tensor, attention: Attention) -> Tensor:
    """The part of each patch in the head's input: `[B, ..., tokens, tokens]` -> `[B, ..., rows, columns]`.

    It is the class token's row, or the patches' rows averaged as the model pools them.
    """
    rows = torch.einsum("bq,b...qk->b...k", attention.pooling, flow)[..., attention.layout.prefix :]
    return rows.reshape(*rows.shape[:-1], *attention.layout.grid)


def last_layer(attention: Attention) -> Tensor:
    """Attention of the last block's heads from the tokens that the model's head reads: `[B, heads, rows, columns]`."""
    return seen_by_head(attention.weights[-1], attention)


def mean_attention_distance(attention: Attention, patch_size: tuple[float, float]) -> Tensor:
    """Mean attention distance of each head (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", appendix D.7).

    It is the distance between a patch and those it attends to, weighted by attention, averaged over patches and images.
    Attention to other tokens is left out.

    Args:
        attention: Of any images.
        patch_size: Height and width of a patch in pixels.

    Returns:
        Pixels, float32 `[depth, heads]`.
    """
    layout = attention.layout
    among_patches = attention.weights[..., layout.prefix :, layout.prefix :]
    distances = patch_distances(layout.grid, patch_size).to(among_patches.device)
    fractions = among_patches / among_patches.sum(dim=-1, keepdim=True)
    return (fractions * distances).sum(dim=-1).mean(dim=(1, 3))


def patch_distances(grid: tuple[int, int], patch_size: tuple[float, float]) -> Tensor:
    """Distances between the centres of all patches in pixels, float32 `[patches, patches]`."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    centres = torch.stack([rows.flatten() * patch_size[0], columns.flatten() * patch_size[1]], dim=1).float()
    return torch.cdist(centres, centres)


def filter_components(network: nn.Module, count: int) -> tuple[Tensor, Tensor] | None:
    """Principal components of the first filters (Dosovitskiy et al. 2021, figure 7, left): of the patch embedding, or
    of a convolutional stem's first layer.

    Returns:
        The first `count` components, of length 1, float32 `[components, 3, height, width]`, and the fraction of the
        filters' variance that each explains, float32 `[components]`. None if the model has no filters of colour images
        larger than a pixel.
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
    explained = singular.square() / singular.square().sum()
    return directions[:count].reshape(-1, *filters.shape[1:]), explained[:count]


def position_similarity(network: nn.Module, layout: TokenLayout) -> Tensor | None:
    """Cosine similarity of the patches' position embeddings, learned or fixed (Dosovitskiy et al. 2021, figure 7,
    centre): float32 `[patches, patches]`; None if the model adds none to its tokens."""
    positions = getattr(network, "pos_embed", None)
    patches = layout.tokens - layout.prefix
    if not isinstance(positions, Tensor) or positions.ndim != 3 or positions.shape[1] not in (patches, layout.tokens):
        return None
    embeddings = F.normalize(positions.detach()[0, -patches:].float(), dim=1)
    return embeddings @ embeddings.T
