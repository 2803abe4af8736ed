"""A block of the transformer."""

from timm.layers import LayerScale
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from vitlab.models.attention import SelfAttention

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class FeedForward(nn.Module):
    """The position-wise feed-forward network of a block, tokens `[B, N, D]` -> `[B, N, D]`."""

    def __init__(self, embed_dim: int, hidden_dim: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.act = ACTIVATIONS[activation]()
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)
        self.drop2 = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


class Block(nn.Module):
    """A pre-norm transformer block, tokens `[B, N, D]` -> `[B, N, D]`.

    `read` is for the last block: how many tokens, from the first on, the head reads; None means all. These alone ask
    the others and go through the feed-forward network, and the output is `[B, read, D]`; logits and gradients stay as
    they are.

    `layer_scale` is where the factors start that each channel of both residual branches is multiplied by (Touvron et
    al. 2021, "Going deeper with Image Transformers", section 2); None leaves them out. `drop_path` is the probability
    with which an image skips each residual branch during training (stochastic depth, Huang et al. 2016).
    """

    def __init__(
        self,
        attention: SelfAttention,
        embed_dim: int,
        hidden_dim: int,
        *,
        activation: str,
        dropout: float,
        layer_scale: float | None,
        drop_path: float,
        read: int | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = attention
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(embed_dim, layer_scale)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = FeedForward(embed_dim, hidden_dim, activation, dropout)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(embed_dim, layer_scale)
        self.drop_path = StochasticDepth(drop_path, mode="row")
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, : self.read] + self.drop_path(self.ls1(self.attn(self.norm1(x), self.read)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
