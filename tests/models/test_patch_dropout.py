import pytest
import torch

from vitlab.models.patch_dropout import SpreadPatchDropout


@pytest.mark.parametrize(
    ("grid", "prob", "per_block"),
    [((8, 8), 0.75, (1, 1)), ((8, 8), 0.5, (2, 2)), ((4, 6), 0.25, (3, 3)), ((8, 4), 0.6, (1, 2))],
)
def test_each_block_keeps_as_many_patches(grid: tuple[int, int], prob: float, per_block: tuple[int, int]) -> None:
    torch.manual_seed(0)
    count = grid[0] * grid[1]
    x = torch.arange(float(count)).view(1, -1, 1).repeat(2_000, 1, 3)
    tokens, kept = SpreadPatchDropout(prob, grid).train()(x)
    assert kept is not None
    torch.testing.assert_close(tokens[:, :, 0].long(), kept)
    assert all(len(set(places)) == int(count * (1 - prob)) for places in kept.tolist())
    block = kept // grid[1] // 2 * (grid[1] // 2) + kept % grid[1] // 2
    per_image = torch.stack([(block == number).sum(1) for number in range(count // 4)])
    assert (int(per_image.min()), int(per_image.max())) == per_block
    share = torch.bincount(kept.flatten(), minlength=count) / len(x)  # no patch is preferred
    torch.testing.assert_close(share, torch.full((count,), int(count * (1 - prob)) / count), atol=0.06, rtol=0)
    assert len({tuple(places) for places in kept[:50].tolist()}) == 50


def test_an_odd_grid_loses_random_patches() -> None:
    torch.manual_seed(0)
    _, kept = SpreadPatchDropout(0.5, (7, 5)).train()(torch.zeros(2_000, 35, 1))
    assert kept is not None
    share = torch.bincount(kept.flatten(), minlength=35) / 2_000
    torch.testing.assert_close(share, torch.full((35,), 17 / 35), atol=0.06, rtol=0)


def test_evaluation_and_a_fraction_of_zero_keep_all_patches() -> None:
    x = torch.randn(2, 16, 4)
    for dropout in (SpreadPatchDropout(0.5, (4, 4)).eval(), SpreadPatchDropout(0.0, (4, 4)).train()):
        tokens, kept = dropout(x)
        assert tokens is x
        assert kept is None
