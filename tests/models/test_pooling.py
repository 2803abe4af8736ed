import torch

from vitlab.models.pooling import SequencePooling


def test_sequence_pooling_by_hand() -> None:
    pool = SequencePooling(2)
    pool.score.weight.data = torch.tensor([[1.0, 0.0]]).log1p()  # e to the score is 2 to the first channel
    tokens = torch.tensor([[[0.0, 3.0], [1.0, 6.0], [2.0, -1.0]], [[1.0, 5.0], [1.0, 0.0], [1.0, 1.0]]])
    torch.testing.assert_close(pool.weights(tokens), torch.tensor([[1 / 7, 2 / 7, 4 / 7], [1 / 3, 1 / 3, 1 / 3]]))
    torch.testing.assert_close(pool(tokens), torch.tensor([[10 / 7, 11 / 7], [1.0, 2.0]]))
