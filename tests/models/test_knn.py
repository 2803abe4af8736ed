"""The nearest-neighbour classifier, compared with two loops."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vitlab.models import knn
from vitlab.models.knn import NearestNeighbours


def vote(known: NDArray[np.float32], labels: list[int], query: NDArray[np.float32], k: int, temperature: float) -> int:
    """The class of one query, by the definition."""
    similarities = [float(row @ query / np.linalg.norm(row) / np.linalg.norm(query)) for row in known]
    nearest = sorted(range(len(labels)), key=lambda index: -similarities[index])[:k]
    votes: dict[int, float] = {}
    for index in nearest:
        votes[labels[index]] = votes.get(labels[index], 0.0) + math.exp(similarities[index] / temperature)
    return max(sorted(votes), key=lambda label: votes[label])


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (1, 0.07), (5, 10.0)])
@pytest.mark.parametrize("at_once", [1, 700, 2**24])
def test_predictions_are_those_of_the_definition(
    k: int, temperature: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "SIMILARITIES_AT_ONCE", at_once)  # so that the queries are divided into chunks
    draw = torch.Generator().manual_seed(0)
    known, queries = torch.randn(150, 6, generator=draw), 3 * torch.randn(40, 6, generator=draw)
    labels = torch.randint(0, 4, (150,), generator=draw)
    wanted = [vote(known.numpy(), labels.tolist(), query.numpy(), k, temperature) for query in queries]
    found = NearestNeighbours(known, labels, neighbours=k, temperature=temperature).predict(queries)
    assert found.tolist() == wanted
    assert len(set(wanted)) == 4


def test_of_few_known_images_all_vote() -> None:
    neighbours = NearestNeighbours(torch.eye(3), torch.tensor([0, 7, 7]))
    assert neighbours.predict(torch.eye(3)).tolist() == [0, 7, 7]
    assert neighbours.predict(torch.empty(0, 3)).tolist() == []


def test_the_most_similar_outweighs_many_others() -> None:
    known = torch.tensor([[1.0, 0.0], *[[0.5, 1.0]] * 9])
    labels = torch.tensor([1, *[0] * 9])
    query = torch.tensor([[1.0, 0.05]])
    assert NearestNeighbours(known, labels).predict(query).item() == 1
    assert NearestNeighbours(known, labels, temperature=10.0).predict(query).item() == 0
