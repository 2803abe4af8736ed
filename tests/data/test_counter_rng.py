import torch

from vitlab.data.counter_rng import CounterRNG, fork_batch_rng


def test_random_numbers_depend_on_the_image_and_not_on_its_batch() -> None:
    together = CounterRNG(3, 5, torch.arange(100)).uniform(1, 4)
    apart = CounterRNG(3, 5, torch.tensor([42, 7])).uniform(1, 4)
    assert torch.equal(together[[42, 7]], apart)


def test_seed_epoch_image_and_operation_each_change_the_numbers() -> None:
    index = torch.arange(1000)
    draws = [
        CounterRNG(seed, epoch, index + shift).uniform(op_index, 2)
        for seed in (0, 1)
        for epoch in (0, 1)
        for shift in (0, 1000)
        for op_index in (0, 1)
    ]
    values = torch.cat(draws).flatten()
    # 32,000 numbers of 24 bits: about 30 coincide by chance.
    assert len(values.unique()) > len(values) - 100


def test_numbers_are_uniform_and_uncorrelated() -> None:
    values = CounterRNG(0, 0, torch.arange(200_000)).uniform(0, 3).double()
    assert values.min() >= 0
    assert values.max() < 1
    counts = torch.histc(values.flatten().float(), bins=20, min=0, max=1)
    assert ((counts / 30_000 - 1).abs() < 0.03).all()
    correlation = torch.corrcoef(values.T)
    assert (correlation - torch.eye(3)).abs().max() < 0.01
    neighbours = torch.corrcoef(torch.stack([values[:-1, 0], values[1:, 0]]))[0, 1]
    assert neighbours.abs() < 0.01


def test_a_repeated_image_gets_new_numbers_and_its_first_use_the_usual_ones() -> None:
    index = torch.arange(1000)
    times = [CounterRNG(0, 0, index, torch.full_like(index, repetition)).uniform(1, 4) for repetition in range(3)]
    assert torch.equal(times[0], CounterRNG(0, 0, index).uniform(1, 4))
    assert len(torch.cat(times).flatten().unique()) > 12_000 - 20
    rows = torch.tensor([5, 900])
    repeated = CounterRNG(0, 0, index, torch.full_like(index, 2))
    assert torch.equal(repeated[rows].uniform(1, 4), times[2][rows])


def test_a_batch_s_numbers_depend_on_seed_epoch_and_number_and_leave_torch_s_state() -> None:
    def draw(*words: int) -> float:
        with fork_batch_rng(*words):
            return torch.rand(()).item()

    torch.manual_seed(7)
    before = torch.get_rng_state()
    words = [(seed, epoch, number) for seed in range(3) for epoch in range(3) for number in range(50)]
    drawn = [draw(*w) for w in words]
    assert len(set(drawn)) == len(drawn)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert [draw(*w) for w in reversed(words)] == drawn[::-1]


def test_the_numbers_never_change() -> None:
    # A change would change the meaning of every recorded seed.
    values = CounterRNG(0, 0, torch.tensor([0, 1])).uniform(0, 2)
    assert values.tolist() == [[0.6687023043632507, 0.519141435623169], [0.2941192388534546, 0.6744025945663452]]
