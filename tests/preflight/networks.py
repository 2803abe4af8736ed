"""Networks with one common mistake each."""

import torch
from torch import Tensor, nn


class NotebookNet(nn.Module):
    """The scratch network of the notebook that this project replaces.

    `nn.MultiheadAttention` without `batch_first=True` gets `[B, N, D]` and attends over the images of the batch. The
    class token attends only to class tokens: the logits are constant.
    """

    def __init__(
        self, image_size: int, num_classes: int, width: int = 32, depth: int = 2, average: bool = False
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 1 + (image_size // 8) ** 2, width))
        self.blocks = nn.ModuleList(NotebookBlock(width) for _ in range(depth))
        self.head = nn.Linear(width, num_classes)
        self.average = average

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(dim=1) if self.average else tokens[:, 0])


class NotebookBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed)[0]
        return x + self.mlp(self.norm2(x))


class Sound(nn.Module):
    """A small ViT without mistakes; the others change one thing."""

    def __init__(self, image_size: int = 32, num_classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.positions = nn.Parameter(torch.randn(1, (image_size // 8) ** 2, width) * 0.02)
        self.block = nn.TransformerEncoderLayer(width, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def tokens(self, images: Tensor) -> Tensor:
        return self.patches(images).flatten(2).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.tokens(images) + self.positions)).mean(dim=1))


class ZeroHead(Sound):
    """Sound: head and positions start at zero."""

    def __init__(self, image_size: int = 32, num_classes: int = 10) -> None:
        super().__init__(image_size, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.positions)


class TokensFirst(Sound):
    """Sound: the token axis comes before the batch axis, as in nn.TransformerEncoderLayer's default."""

    def __init__(self, image_size: int = 32, num_classes: int = 10) -> None:
        super().__init__(image_size, num_classes)
        self.block = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, norm_first=True)

    def forward(self, images: Tensor) -> Tensor:
        tokens = (self.tokens(images) + self.positions).transpose(0, 1)
        return self.head(self.norm(self.block(tokens)).mean(dim=0))


class EndsInSoftmax(Sound):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).softmax(dim=1)


class SoftmaxOverTheBatch(Sound):
    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.block(self.tokens(images) + self.positions)).mean(dim=1)
        return self.head(x * x.softmax(dim=0))


class ThousandClasses(Sound):
    def __init__(self, image_size: int = 32) -> None:
        super().__init__(image_size, 1000)


class NoPositions(Sound):
    """Position embeddings are created but never added."""

    def __init__(self, image_size: int = 32, num_classes: int = 10) -> None:
        super().__init__(image_size, num_classes)
        del self.positions

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.tokens(images))).mean(dim=1))


class ForgottenParameter(Sound):
    """Learned positions are a plain tensor."""

    def __init__(self, image_size: int = 32, num_classes: int = 10) -> None:
        super().__init__(image_size, num_classes)
        positions = self.positions.detach().clone()
        del self.positions
        self.positions = positions


class ForgottenRequiresGrad(Sound):
    """Learned positions are frozen."""

    def __init__(self, image_size: int = 32, num_classes: int = 10) -> None:
        super().__init__(image_size, num_classes)
        self.positions.requires_grad_(False)


class DetachedPatches(Sound):
    def tokens(self, images: Tensor) -> Tensor:
        return super().tokens(images).detach()


class FrozenBackbone(Sound):
    def __init__(self, image_size: int = 32, num_classes: int = 10) -> None:
        super().__init__(image_size, num_classes)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("head"))


class UnusedLayer(Sound):
    def __init__(self, image_size: int = 32, num_classes: int = 10) -> None:
        super().__init__(image_size, num_classes)
        self.left_over = nn.Linear(4, 4)


class LosesTokens(Sound):
    """The first row of patches is dropped, as if it were class tokens."""

    def forward(self, images: Tensor) -> Tensor:
        tokens = (self.tokens(images) + self.positions)[:, 4:]
        return self.head(self.norm(self.block(tokens)).mean(dim=1))


class LargeStart(Sound):
    def __init__(self, image_size: int = 32, num_classes: int = 10) -> None:
        super().__init__(image_size, num_classes)
        nn.init.normal_(self.head.weight)
        self.head.weight.data *= 3


class NanGradient(Sound):
    """The slope of the root at zero is infinite, and zero times infinity is NaN."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits + (logits * 0).abs().sqrt()


class Overflows(Sound):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * 1e30).exp()


class DropsDigits(Sound):
    """A large offset leaves no bits for the features when rounded to 8 bits."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.block(self.tokens(images) + self.positions)).mean(dim=1)
        offset = torch.eye(x.shape[1], device=x.device)
        return self.head((x + 300) @ offset - 300)


class WrongSize(Sound):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(64, num_classes)


class Blind(Sound):
    """The head gets a constant."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.block(self.tokens(images) + self.positions)).mean(dim=1)
        return self.head(x * 0 + self.positions.mean(dim=1))


class CutOff(nn.Module):
    """All layers are under no_grad."""

    def __init__(self, image_size: int = 32, num_classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            logits = self.layers(images)
        return logits + 1e-6 * self.scale


class BadAugmentation(nn.Module):
    """Brightens without clamping, or produces NaN."""

    def __init__(self, kind: str, alternating: bool) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, images: Tensor, rng: object, op_index: int) -> Tensor:
        return images.float() * 3 if self.kind == "bright" else images.float().log() * 0 / 0


class RandomInEvaluation(Sound):
    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(images), 0.5)


class ReturnsATuple(Sound):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(images), images


class OneColour(Sound):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[:, :1].expand(-1, 3, -1, -1))


class ConstantHead(Sound):
    """The logits do not depend on the images."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(torch.ones_like(images))


class ChangesItsInput(Sound):
    """Sound: changes its input in place."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.mul_(1.0))
