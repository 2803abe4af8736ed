import torch

from vitlab.data.arrays import ImageArrays
from vitlab.data.loader import ResidentLoader, epoch_order


def make(rank: int = 0, world_size: int = 1, drop_last: bool = True, count: int = 50) -> ResidentLoader:
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    arrays = ImageArrays.of(images, torch.arange(count), [str(i) for i in range(count)])
    return ResidentLoader(
        arrays,
        12,
        seed=0,
        epoch=lambda: 4,
        drop_last=drop_last,
        device=torch.device("cpu"),
        rank=rank,
        world_size=world_size,
    )


def test_an_epoch_s_order_is_a_permutation_that_seed_and_epoch_decide() -> None:
    orders = [tuple(epoch_order(100, seed, epoch).tolist()) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert orders[4] == tuple(epoch_order(100, 1, 1).tolist())


def test_images_labels_and_indices_belong_together() -> None:
    for images, labels, index in make():
        assert torch.equal(images[:, 0, 0, 0].long(), labels)
        assert torch.equal(labels, index)


def test_the_last_batch_is_dropped_or_kept() -> None:
    assert [len(labels) for _, labels, _ in make()] == [12] * 4
    assert [len(labels) for _, labels, _ in make(drop_last=False)] == [12] * 4 + [2]
    assert len(make()) == 4
    assert len(make(drop_last=False)) == 5


def test_the_ranks_shares_one_after_another_are_the_batch_of_one_process() -> None:
    for drop_last in (True, False):
        alone = [index.tolist() for _, _, index in make(drop_last=drop_last)]
        ranks = [[index.tolist() for _, _, index in make(rank, 3, drop_last)] for rank in range(3)]
        assert [[*a, *b, *c] for a, b, c in zip(*ranks, strict=True)] == alone
