import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab.models.patch_embedding import HIDDEN_WIDTH, ConvolutionalTokenizer, PatchEmbedding, ShiftedPatchTokenization


def images(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


def shifted(height: int, width: int, channels: int = 3, embed_dim: int = 7) -> ShiftedPatchTokenization:
    torch.manual_seed(1)
    stem = ShiftedPatchTokenization((height, width), channels, embed_dim)
    for parameter in stem.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return stem


def pixel(image: Tensor, channel: int, row: int, column: int) -> float:
    inside = 0 <= row < image.shape[1] and 0 <= column < image.shape[2]
    return image[channel, row, column].item() if inside else 0.0


def shifted_patch(image: Tensor, size: tuple[int, int], row: int, column: int) -> Tensor:
    """The pixels of a patch, then of the copies shifted down right, down left, up right and up left."""
    down, right = size[0] // 2, size[1] // 2
    values = [
        pixel(image, channel, row * size[0] + y - dy, column * size[1] + x - dx)
        for dy, dx in ((0, 0), (down, right), (down, -right), (-down, right), (-down, -right))
        for channel in range(len(image))
        for y in range(size[0])
        for x in range(size[1])
    ]
    return torch.tensor(values)


@pytest.mark.parametrize(("size", "channels"), [((4, 4), 3), ((4, 6), 1), ((3, 3), 2), ((1, 1), 3)], ids=str)
def test_shifted_patches_by_hand(size: tuple[int, int], channels: int) -> None:
    stem, batch = shifted(*size, channels), images(12, 12, channels)
    rows, columns = 12 // size[0], 12 // size[1]
    patches = torch.stack(
        [
            torch.stack([shifted_patch(image, size, row, column) for row in range(rows) for column in range(columns)])
            for image in batch
        ]
    )
    spread = (patches.var(dim=-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    normed = (patches - patches.mean(dim=-1, keepdim=True)) / spread * stem.norm.weight + stem.norm.bias
    torch.testing.assert_close(stem(batch), normed @ stem.proj.weight.T + stem.proj.bias, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("size", [(4, 4), (4, 6), (1, 1)], ids=str)
def test_a_product_in_16_bits_equals_the_convolution(size: tuple[int, int], autocast: bool) -> None:
    torch.manual_seed(0)
    stem, batch = PatchEmbedding(size, 3, 8), images(12, 24)
    expected = stem(batch)
    expected.square().sum().backward()
    gradient = stem.proj.weight.grad
    assert gradient is not None
    stem.zero_grad()
    if not autocast:
        stem, batch = stem.bfloat16(), batch.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        tokens = stem(batch)
    assert tokens.dtype == torch.bfloat16
    tokens.float().square().sum().backward()
    torch.testing.assert_close(tokens.float(), expected, atol=2e-2, rtol=2e-2)
    difference = (stem.proj.weight.grad.float() - gradient).norm() / gradient.norm()
    assert difference < 0.01


def test_a_shifted_token_sees_its_patch_and_half_a_patch_around() -> None:
    batch = images(16, 16).requires_grad_()
    shifted(4, 4)(batch)[0, 4 * 1 + 2].sum().backward()  # row 1, column 2
    assert batch.grad is not None
    seen = batch.grad[0].abs().sum(dim=0) > 0
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[2:10, 6:14] = True
    assert torch.equal(seen, expected)


def test_filters_of_shifted_patches_reproduce_a_token() -> None:
    stem, batch = shifted(4, 6), images(12, 12)
    filters = stem.filters()
    assert filters.shape == (7, 3, 8, 12)
    token = 2 * 1 + 1  # row 1, column 1
    patch = shifted_patch(batch[0], (4, 6), 1, 1)
    window = F.pad(batch[0], (3, 3, 2, 2))[:, 4:12, 6:18]
    products = (filters * window).sum(dim=(1, 2, 3)) - patch.mean() * (stem.proj.weight * stem.norm.weight).sum(dim=1)
    expected = products / (patch.var(unbiased=False) + 1e-5).sqrt() + stem.proj(stem.norm.bias)
    torch.testing.assert_close(stem(batch)[0, token], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("patch_size", [2, 4])
def test_the_tokenizer_convolves_and_max_pools(patch_size: int) -> None:
    stem = ConvolutionalTokenizer((patch_size, patch_size), 3, 20)
    stem.initialise()
    x = images(8, 12)
    widths = [20] if patch_size == 2 else [HIDDEN_WIDTH, 20]
    weights = list(stem.state_dict().values())
    assert [len(weight) for weight in weights] == widths
    for weight in weights:
        height, width = x.shape[-2:]
        sums = weight.flatten(1) @ F.unfold(x, 3, padding=1)
        positive = sums.clamp_min(0).reshape(*sums.shape[:2], height, width)
        nine = F.unfold(positive, 3, padding=1, stride=2).unflatten(1, (-1, 9))
        x = nine.amax(dim=2).reshape(len(x), len(weight), height // 2, width // 2)
    torch.testing.assert_close(stem(images(8, 12)), x.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("patch_size", [(1, 1), (6, 6), (4, 2)])
def test_the_tokenizer_needs_a_power_of_two(patch_size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"stem=conv halves the sides: patch_size=.* must be 2, 4, 8"):
        ConvolutionalTokenizer(patch_size, 3, 8)


@pytest.mark.parametrize("kind", [PatchEmbedding, ShiftedPatchTokenization])
def test_normalised_pixels_give_tokens_of_variance_one(kind: type[PatchEmbedding | ShiftedPatchTokenization]) -> None:
    torch.manual_seed(0)
    stem = kind((4, 4), 3, 256)
    stem.initialise()
    assert stem(torch.randn(64, 3, 16, 16)).std().item() == pytest.approx(1.0, rel=0.1)
