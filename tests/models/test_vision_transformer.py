from contextlib import nullcontext
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vitlab.models import VisionTransformer
from vitlab.models.timm_models import full_output
from vitlab.models.vision_transformer import SequencePooling

SMALL: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "in_channels": 3,
    "num_classes": 10,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "pool": "mean",
    "pos_embed": "learned",
}


def make(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(**{**SMALL, **changes}).eval()
    for parameter in model.parameters():  # no zeros or ones, so that every weight has an effect
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def images_for(model: VisionTransformer, count: int = 4) -> Tensor:
    return torch.randn(count, model.in_channels, *model.image_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("fused_attention", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool": "cls"},
        {"pool": "cls", "qk_norm": True},
        {"pool": "mean", "pos_embed": "sincos2d"},
        {"pool": "cls", "pos_embed": "sincos2d"},
        {"pool": "mean", "pos_embed": "none"},
        {"layer_scale": 0.3},
        {"pool": "cls", "registers": 3},
        {"pool": "mean", "registers": 2, "pos_embed": "sincos2d", "qk_norm": True},
        {"pool": "mean", "registers": 1, "pos_embed": "none", "layer_scale": 0.1},
        {"activation": "relu", "patch_size": 4, "embed_dim": 64, "num_heads": 2},
        {"image_size": (24, 48), "patch_size": (8, 12), "in_channels": 1, "num_classes": 3, "mlp_ratio": 4.0},
    ],
    ids=str,
)
def test_logits_equal_those_of_timm_with_the_same_weights(changes: dict[str, Any], fused_attention: bool) -> None:
    model = make(**changes, fused_attention=fused_attention)
    images = images_for(model)
    torch.testing.assert_close(model(images), of_timm(model, **changes)(images), atol=1e-5, rtol=0)


class Kept(nn.Module):
    """Patches of another module's choice after the prefix, in timm's form: all tokens, after their positions."""

    def __init__(self, choice: nn.Module, prefix: int) -> None:
        super().__init__()
        self.choice, self.prefix = choice, prefix

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, : self.prefix], self.choice(x[:, self.prefix :])[0]], dim=1)


def of_timm(model: VisionTransformer, **changes: Any) -> timm.models.VisionTransformer:
    """timm's model with our weights."""
    choice = {**SMALL, **changes}
    oracle = timm.models.VisionTransformer(
        img_size=choice["image_size"],
        patch_size=choice["patch_size"],
        in_chans=choice["in_channels"],
        num_classes=choice["num_classes"],
        embed_dim=choice["embed_dim"],
        depth=choice["depth"],
        num_heads=choice["num_heads"],
        mlp_ratio=choice["mlp_ratio"],
        qk_norm=choice.get("qk_norm", False),
        init_values=choice.get("layer_scale"),
        reg_tokens=choice.get("registers", 0),
        class_token=choice["pool"] == "cls",
        global_pool="token" if choice["pool"] == "cls" else "avg",
        pos_embed="none" if choice["pos_embed"] == "none" else "learn",
        act_layer=choice.get("activation", "gelu"),
        fc_norm=False,
    ).eval()
    weights = model.state_dict()
    if choice["pos_embed"] == "sincos2d":  # not in the state_dict, because it is fixed; timm has no fixed positions
        assert model.pos_embed is not None
        weights["pos_embed"] = model.pos_embed
    oracle.load_state_dict(weights)
    return oracle


@pytest.mark.parametrize("changes", [{}, {"pool": "cls", "registers": 2}], ids=str)
def test_patches_are_dropped_only_in_training_and_give_the_logits_of_timm(changes: dict[str, Any]) -> None:
    model = make(patch_dropout=0.5, **changes)
    oracle = of_timm(model, **changes)
    assert model.patch_drop is not None
    oracle.patch_drop = Kept(model.patch_drop, model.num_prefix_tokens)
    images = images_for(model)
    whole = model(images)
    torch.testing.assert_close(whole, make(**changes)(images), atol=0, rtol=0)
    logits = []
    for network in (model.train(), oracle.train()):
        torch.manual_seed(7)
        logits.append(network(images))
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=0)
    assert (logits[0] - whole).abs().max() > 1e-2
    seen = []
    model.norm.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    with full_output(model):
        model(images)
    assert seen[0].shape[1] == 8 + model.num_prefix_tokens


@pytest.mark.parametrize("stem", ["patch", "shifted", "conv"])
@pytest.mark.parametrize("pos_embed", ["learned", "sincos2d", "none"])
@pytest.mark.parametrize("prefix", [{}, {"pool": "cls", "registers": 2}], ids=["", "prefix"])
def test_kept_patches_become_the_tokens_that_they_become_among_all(
    stem: str, pos_embed: str, prefix: dict[str, Any]
) -> None:
    model = make(stem=stem, pos_embed=pos_embed, patch_dropout=0.5, **prefix)
    kept, seen = [], []
    assert model.patch_drop is not None
    model.patch_drop.register_forward_hook(lambda _, __, output: kept.append(output[1]))
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = images_for(model)
    model.train()(images)
    model.eval()(images)
    first = torch.arange(model.num_prefix_tokens).expand(len(images), -1)
    rows = torch.cat([first, kept[0] + model.num_prefix_tokens], dim=1).unsqueeze(-1)
    torch.testing.assert_close(seen[0], seen[1].take_along_dim(rows, dim=1), atol=1e-5, rtol=1e-4)


OPTIONS: list[dict[str, Any]] = [  # that timm's ViT does not have, and a combination
    {"pool": "attention"},
    {"stem": "shifted"},
    {"stem": "conv"},
    {"locality_attention": True},
    {"attention_init": "mimetic", "pos_embed": "sincos2d"},
    {"rotary": True, "pos_embed": "none"},
    {"relative_bias": True, "pos_embed": "none"},
    {"relative_bias": True, "pool": "cls", "registers": 2, "locality_attention": True, "patch_dropout": 0.3},
    {"rotary": True, "pool": "cls", "registers": 2, "locality_attention": True, "patch_dropout": 0.3},
    {
        **{"pool": "attention", "stem": "shifted", "locality_attention": True, "registers": 2, "layer_scale": 0.1},
        **{"patch_dropout": 0.3, "qk_norm": True, "pos_embed": "sincos2d", "drop_path": 0.1},
    },
]


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_options_keep_the_contracts(changes: dict[str, Any]) -> None:
    model = make(**changes)
    images = images_for(model, 6)
    logits = model(images)
    alone = torch.cat([model(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-4)
    for row, column in ((0, 0), (8, 24), (31, 31)):  # pixels of different patches
        changed = images[:1].clone()
        changed[:, :, row, column] += 3.0
        assert (model(changed) - alone[:1]).abs().max() > 1e-4, (row, column)
    plain = make(**changes, fused_attention=False)
    torch.testing.assert_close(plain(images), logits, atol=1e-5, rtol=1e-4)
    model.train()
    model(images).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("stem", ["patch", "shifted", "conv"])
def test_blocks_get_tokens_that_no_layer_has_to_copy(stem: str) -> None:
    model = make(stem=stem)
    with torch.no_grad():
        tokens = model.patch_embed(images_for(model))
        assert tokens.is_contiguous() == (stem != "patch")  # otherwise the test would show nothing
        model.blocks[0].register_forward_pre_hook(lambda _, args: seen.extend(args))
        seen: list[Tensor] = []
        model(images_for(model))
    assert seen[0].is_contiguous()


def test_the_head_does_not_read_registers() -> None:
    model = make(registers=2, depth=1)
    model.blocks[0].attn.proj.weight.data.zero_()  # the patches do not see them
    before = model(images_for(model))
    assert model.reg_token is not None
    model.reg_token.data += 5.0
    assert torch.equal(model(images_for(model)), before)


READING: list[dict[str, Any]] = [
    {},
    {"registers": 2, "qk_norm": True, "layer_scale": 0.1},
    {"locality_attention": True},
    {"relative_bias": True, "registers": 2},
    {"fused_attention": False},
]


@pytest.mark.parametrize("changes", READING, ids=str)
def test_the_shortened_last_block_changes_no_logit_or_gradient(changes: dict[str, Any]) -> None:
    network = make(pool="cls", **changes)
    images = images_for(network)
    assert network.forward_features(images).shape[1] == 1
    gradients = []
    for reading in (nullcontext(), full_output(network)):
        with reading:
            logits = network(images)
        network.zero_grad()
        logits.square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters()} | {"logits": logits})
    assert all(tensor.abs().sum() > 0 for tensor in gradients[0].values())
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_logits_do_not_depend_on_the_rest_of_the_batch(pool: str) -> None:
    model = make(pool=pool)
    images = images_for(model, 6)
    alone = torch.cat([model(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(model(images), alone, atol=1e-6, rtol=1e-5)
    others_changed = torch.cat([images[:1], images_for(model, 6).flip(-1)[1:] * 3])
    torch.testing.assert_close(model(others_changed)[0], alone[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_every_patch_affects_the_logits(pool: str) -> None:
    model = make(pool=pool)
    image = images_for(model, 1)
    before = model(image)
    for row in range(0, 32, 8):
        for column in range(0, 32, 8):
            changed = image.clone()
            changed[:, :, row : row + 8, column : column + 8] += 1.0
            assert (model(changed) - before).abs().max() > 1e-4, (row, column)


def shuffle_patches(images: Tensor, size: int = 8) -> Tensor:
    batch, channels, height, width = images.shape
    grid = images.reshape(batch, channels, height // size, size, width // size, size)
    patches = grid.permute(2, 4, 0, 1, 3, 5).reshape(-1, batch, channels, size, size)
    patches = patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(2))]
    grid = patches.reshape(height // size, width // size, batch, channels, size, size)
    return grid.permute(2, 3, 0, 4, 1, 5).reshape(images.shape)


@pytest.mark.parametrize(
    ("changes", "order_matters"),
    [
        ({"pos_embed": "learned"}, True),
        ({"pos_embed": "sincos2d"}, True),
        ({"pos_embed": "none"}, False),
        ({"pos_embed": "none", "rotary": True}, True),
        ({"pos_embed": "none", "relative_bias": True}, True),
    ],
)
def test_patch_order_matters_only_with_positions(changes: dict[str, Any], order_matters: bool) -> None:
    model = make(**changes)
    images = images_for(model)
    difference = (model(shuffle_patches(images)) - model(images)).abs().max()
    assert difference > 1e-3 if order_matters else difference < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residual_init": "zero", "attention_init": "mimetic"}, "residual_init=zero would erase"),
        ({"patch_size": 5}, "image_size=32 is not a multiple of patch_size=5"),
        ({"image_size": (32, 30)}, "image_size=32, 30 is not a multiple of patch_size=8"),
        ({"num_heads": 5}, "embed_dim=48 is not a multiple of num_heads=5"),
        ({"pos_embed": "sincos2d", "embed_dim": 6, "num_heads": 1}, "needs embed_dim to be a multiple of 4, not 6"),
        ({"pool": "max"}, "pool=max is unknown; choose one of cls, mean, attention"),
        ({"stem": "resnet"}, "stem=resnet is unknown; choose one of patch, shifted, conv"),
        ({"stem": "conv", "image_size": 36, "patch_size": 6}, "stem=conv halves the sides"),
        ({"pos_embed": "rope"}, "pos_embed=rope is unknown; choose one of learned, sincos2d, none"),
        ({"activation": "swish"}, "activation=swish is unknown; choose one of gelu, relu"),
    ],
    ids=str,
)
def test_invalid_choices_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_images_of_another_size_are_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"expected images of shape \[B, 3, 32, 32\], got \[2, 3, 40, 40\]"):
        make()(torch.zeros(2, 3, 40, 40))


def test_a_head_of_two_layers_has_a_tanh_between_them() -> None:
    model = make(head_hidden_dim=20)
    pooled = model.forward_features(images_for(model)).mean(dim=1)
    weights = model.state_dict()
    hidden = torch.tanh(pooled @ weights["head.0.weight"].T + weights["head.0.bias"])
    expected = hidden @ weights["head.2.weight"].T + weights["head.2.bias"]
    torch.testing.assert_close(model(images_for(model)), expected)


def test_drop_path_rises_linearly_and_acts_only_in_training() -> None:
    model = make(drop_path=0.4, depth=5)
    assert [block.drop_path.p for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    images = images_for(model, 16)
    torch.testing.assert_close(model(images), model(images), atol=0, rtol=0)
    model.train()
    assert not torch.equal(model(images), model(images))


@pytest.mark.parametrize("knob", ["dropout", "attention_dropout"])
def test_dropout_acts_only_in_training(knob: str) -> None:
    plain, model = make(), make(**{knob: 0.5})
    images = images_for(model)
    torch.testing.assert_close(model(images), plain(images))
    model.train()
    assert not torch.allclose(model(images), plain(images), atol=1e-3)


def test_new_weights_start_as_documented() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(**{**SMALL, "pool": "cls", "embed_dim": 256})
    assert isinstance(model.pos_embed, torch.nn.Parameter)
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    tokens = model.patch_embed(torch.randn(64, 3, 32, 32))
    assert tokens.std().item() == pytest.approx(1.0, rel=0.1)
    loss = torch.nn.functional.cross_entropy(model(torch.randn(64, 3, 32, 32)), torch.arange(64) % 10)
    assert loss.item() == pytest.approx(2.3026, abs=0.1)


@pytest.mark.parametrize("changes", [{}, {"layer_scale": 0.1, "qk_norm": True}], ids=str)
def test_with_residual_init_zero_blocks_return_their_input_until_they_learn(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(**{**SMALL, **changes, "residual_init": "zero"})
    images, labels = images_for(model), torch.arange(4)
    tokens = model.patch_embed(images) + model.pos_embed
    torch.testing.assert_close(model.forward_features(images), model.norm(tokens))
    reached: set[str] = set()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # the first step moves the zeros, and then the weights before them learn
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        reached |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {name for name, _ in model.named_parameters()}


def test_every_parameter_gets_a_gradient() -> None:
    model = make(pool="cls", qk_norm=True, head_hidden_dim=8).train()
    model(images_for(model)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool": "cls", "registers": 2, "layer_scale": 0.3},
        {"stem": "shifted", "pos_embed": "sincos2d"},
        {"stem": "conv", "pool": "attention"},
    ],
    ids=str,
)
def test_the_residual_stream_in_bfloat16_rounds_the_logits(changes: dict[str, Any]) -> None:
    half, full = (make(**changes, depth=2, bf16_residual=is_half) for is_half in (True, False))
    images, dtypes = images_for(half, 16), []
    exact = full(images)
    assert torch.equal(half(images), exact)  # without autocast nothing is rounded
    for network, expected in ((half, torch.bfloat16), (full, torch.float32)):
        hooks = [
            module.register_forward_pre_hook(lambda _, inputs: dtypes.append(inputs[0].dtype))
            for block in network.blocks
            for module in (block, block.norm2)
        ]
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images).float()
        assert len(hooks) == 4
        assert dtypes == [expected] * 4
        dtypes.clear()
        assert (logits - exact).norm() / exact.norm() < 0.02
    with torch.autocast("cpu", torch.float16):  # has too few exponents for the sums
        half.norm.register_forward_pre_hook(lambda _, inputs: dtypes.append(inputs[0].dtype))
        half(images)
    assert dtypes[-1] == torch.float32


def test_activation_checkpointing_changes_no_gradient() -> None:
    network = VisionTransformer(**SMALL, dropout=0.1, drop_path=0.1, attention_dropout=0.1)
    images, gradients = torch.randn(4, 3, 32, 32), []
    for recompute in (False, True):
        network.set_grad_checkpointing(recompute)
        network.zero_grad()
        torch.manual_seed(1)
        network(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_activation_checkpointing_keeps_fewer_activations() -> None:
    network, images, kept = VisionTransformer(**SMALL), torch.randn(4, 3, 32, 32), []
    for recompute in (False, True):
        network.set_grad_checkpointing(recompute)
        sizes: list[int] = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(images)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


def test_sequence_pooling_by_hand() -> None:
    pool = SequencePooling(2)
    pool.score.weight.data = torch.tensor([[1.0, 0.0]]).log1p()  # e to the score is 2 to the first channel
    tokens = torch.tensor([[[0.0, 3.0], [1.0, 6.0], [2.0, -1.0]], [[1.0, 5.0], [1.0, 0.0], [1.0, 1.0]]])
    torch.testing.assert_close(pool.weights(tokens), torch.tensor([[1 / 7, 2 / 7, 4 / 7], [1 / 3, 1 / 3, 1 / 3]]))
    torch.testing.assert_close(pool(tokens), torch.tensor([[10 / 7, 11 / 7], [1.0, 2.0]]))


@pytest.mark.parametrize("stem", ["patch", "shifted", "conv"])
@pytest.mark.parametrize("train", [False, True])
def test_no_image_gives_no_logits(stem: str, train: bool) -> None:
    """A rank may have no image of a small last batch."""
    model = make(stem=stem).train(train)
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            assert model(torch.zeros(0, 3, 32, 32)).shape == (0, 10)
