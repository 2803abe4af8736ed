import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from vitlab.data.arrays import ImageArrays
from vitlab.data.loader import ResidentLoader, StoredBatch, epoch_order, prefetched, repeated_order


def make(rank: int = 0, world_size: int = 1, drop_last: bool = True, count: int = 50, **changes: Any) -> ResidentLoader:
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
        **changes,
    )


def test_an_epoch_s_order_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    orders = [tuple(epoch_order(100, seed, epoch).tolist()) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert orders[4] == tuple(epoch_order(100, 1, 1).tolist())


def test_images_labels_and_indices_belong_together() -> None:
    for images, labels, index, _, _ in make():
        assert torch.equal(images[:, 0, 0, 0].long(), labels)
        assert torch.equal(labels, index)


def test_the_last_batch_is_dropped_or_kept() -> None:
    assert [len(batch.labels) for batch in make()] == [12] * 4
    assert [len(batch.labels) for batch in make(drop_last=False)] == [12] * 4 + [2]
    assert len(make()) == 4
    assert len(make(drop_last=False)) == 5


def test_the_shards_of_all_ranks_together_are_the_batch_of_one_process() -> None:
    for drop_last in (True, False):
        alone = [batch.indices.tolist() for batch in make(drop_last=drop_last)]
        ranks = [[batch.indices.tolist() for batch in make(rank, 3, drop_last)] for rank in range(3)]
        assert [[*a, *b, *c] for a, b, c in zip(*ranks, strict=True)] == alone


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_shard_with_its_neighbour_can_be_rolled_like_the_whole_batch(repeats: int) -> None:
    whole = list(make(repeats=repeats))
    for rank in range(3):
        shards = list(make(rank, 3, repeats=repeats, with_neighbour=True))
        assert len(shards) == len(whole) == 4
        for shard, batch in zip(shards, whole, strict=True):
            part = slice(4 * rank, 4 * rank + 4)
            for name in ("images", "indices", "repetitions"):
                own, every = getattr(shard, name), getattr(batch, name)
                assert torch.equal(own[1:], every[part])
                assert torch.equal(own[:-1], every.roll(1, 0)[part])
            assert shard.number == batch.number


def test_with_three_repeats_an_epoch_uses_a_third_of_the_images_three_times() -> None:
    batches = list(make(repeats=3))
    assert [len(batch.labels) for batch in batches] == [12] * 4
    for number, batch in enumerate(batches):
        assert batch.number == number
        assert torch.equal(batch.labels, batch.indices)
        # All repetitions of an image are in one batch, first uses first, and never adjacent.
        assert batch.indices.view(3, 4).unique(dim=0).shape == (1, 4)
        assert torch.equal(batch.repetitions, torch.arange(3).repeat_interleave(4))
        assert (batch.indices != batch.indices.roll(1)).all()
    seen = torch.cat([batch.indices for batch in batches])
    assert torch.equal(seen.unique(), epoch_order(50, 0, 4)[:16].sort().values)


def test_repetitions_that_do_not_fit_continue_in_the_next_batch() -> None:
    order = epoch_order(50, 0, 0)
    indices, repetitions = repeated_order(order, 3, 16)
    assert indices.shape == repetitions.shape == (50,)
    pairs = set(zip(indices.tolist(), repetitions.tolist(), strict=True))
    assert pairs == {(int(order[slot // 3]), slot % 3) for slot in range(50)}
    assert len(indices[:16].unique()) == 6
    for start in range(0, 48, 16):
        batch = indices[start : start + 16]
        assert (batch != batch.roll(1)).all()
    assert torch.equal(repeated_order(order, 1, 16)[0], order)


def test_a_pass_with_repetitions_resumes_where_it_stopped() -> None:
    whole = list(make(repeats=3, with_neighbour=True))
    first = make(repeats=3, with_neighbour=True)
    passed = iter(first)
    for _ in range(2):
        next(passed)
    again = make(repeats=3, with_neighbour=True)
    again.load_state_dict(first.state_dict())
    for one, other in zip(again, whole[2:], strict=True):
        assert one.number == other.number
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.repetitions, other.repetitions)


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The thread that pins each tensor; without a GPU there is no pinned memory."""
    threads: list[str] = []

    def pin(tensor: Tensor) -> Tensor:
        threads.append(threading.current_thread().name)
        return tensor.clone()

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    return threads


@pytest.mark.parametrize(
    "options",
    [{}, {"drop_last": False}, {"rank": 1, "world_size": 2, "with_neighbour": True, "repeats": 3}, {"count": 12}],
    ids=str,
)
@pytest.mark.parametrize("first", [0, 2, 4])
def test_prefetched_batches_and_progress_equal_the_others(
    options: dict[str, Any], first: int, pinned: list[str]
) -> None:
    direct, prefetching = make(**options), make(**options, prefetch=True)
    for loader in (direct, prefetching):
        loader.load_state_dict({"epoch": 4, "batches": first})
    given = 0
    for ours, theirs in zip(prefetching, direct, strict=True):
        given += 1
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(ours, theirs, strict=True))
        assert prefetching.state_dict() == direct.state_dict() == {"epoch": 4, "batches": first + given}
    assert given == max(len(direct) - first, 0)
    assert len(pinned) == 4 * given
    assert threading.current_thread().name not in pinned


def test_the_next_batch_is_gathered_while_one_is_used(pinned: list[str]) -> None:
    gathered = threading.Semaphore(0)

    def gather(number: int) -> StoredBatch:
        gathered.release()
        return StoredBatch(*torch.zeros(3, 1), number=number)

    batches = prefetched(gather, range(3))
    next(batches)
    assert gathered.acquire(timeout=10)
    assert gathered.acquire(timeout=10)  # the second one
    assert not gathered.acquire(blocking=False)  # and no further
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name in pinned]


def test_an_error_of_the_thread_reaches_the_caller(pinned: list[str]) -> None:
    def gather(number: int) -> StoredBatch:
        if number == 2:
            raise OSError("the disk is gone")
        return StoredBatch(*torch.zeros(3, 1), number=number)

    batches = prefetched(gather, range(4))
    assert [next(batches).number, next(batches).number] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name in pinned]
