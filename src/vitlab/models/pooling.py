"""From tokens to what the head classifies."""

import torch
from torch import Tensor, nn


class SequencePooling(nn.Module):
    """The mean of an image's tokens by weights that the network learns to give them: `[B, N, D]` -> `[B, D]`.

    Hassani et al. 2021, "Escaping the Big Data Paradigm with Compact Transformers", section 3 (SeqPool). Without the
    bias of the paper's linear layer, which changes no weight.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(embed_dim, 1, bias=False)

    def weights(self, tokens: Tensor) -> Tensor:
        """Of each token, `[B, N]`; each image's sum to 1."""
        return torch.softmax(self.score(tokens).squeeze(2), dim=1)

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.weights(tokens).to(tokens.dtype).unsqueeze(1) @ tokens).squeeze(1)
