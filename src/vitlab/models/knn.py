"""Classify features by their nearest neighbours, without a head."""

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS, TEMPERATURE = 20, 0.07
SIMILARITIES_AT_ONCE = 2**24  # 64 MB


class NearestNeighbours:
    """Weighted k-nearest-neighbour classifier: the features most similar to a new one vote for their classes.

    A vote weighs exp(cosine similarity / temperature) (Wu et al. 2018, "Unsupervised Feature Learning via
    Non-Parametric Instance Discrimination", section 3.4). Defaults as for DINO: 20 neighbours, temperature 0.07 (Caron
    et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", section 3.2 and appendix F).

    Args:
        features, labels: Of the known images, float `[N, D]` and int64 `[N]`; of fewer than `neighbours` all vote.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, *, neighbours: int = NEIGHBOURS, temperature: float = TEMPERATURE
    ) -> None:
        self.features = F.normalize(features.float(), dim=1)
        self.labels = labels
        self.neighbours = min(neighbours, len(labels))
        self.temperature = temperature
        self.classes = int(labels.max()) + 1

    def predict(self, features: Tensor) -> Tensor:
        """The class with the most votes for each of the features, float `[B, D]`: int64 `[B]`."""
        rows = max(1, SIMILARITIES_AT_ONCE // len(self.labels))
        chunks = torch.split(F.normalize(features.float(), dim=1), rows)
        return torch.cat([self._vote(chunk @ self.features.T) for chunk in chunks])

    def _vote(self, similarities: Tensor) -> Tensor:
        similarity, index = similarities.topk(self.neighbours, dim=1)
        votes = similarity.new_zeros(len(similarity), self.classes)
        return votes.scatter_add_(1, self.labels[index], (similarity / self.temperature).exp()).argmax(dim=1)
