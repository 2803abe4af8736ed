from functools import partial
from typing import Any

import pytest
import timm
import torch
from models.test_vision_transformer import images_for, make
from timm.models.vision_transformer_relpos import RelPosAttention
from torch import Tensor

from vitlab.models.attention import SelfAttention
from vitlab.models.positions import RelativePositionBias, rotary2d, rotate, sincos2d
from vitlab.models.timm_models import full_output


def test_sincos_positions_are_distinct_and_separate_rows_from_columns() -> None:
    table = sincos2d(32, (3, 5))[0].reshape(3, 5, 32)
    assert len(torch.unique(table.reshape(15, 32), dim=0)) == 15
    torch.testing.assert_close(table[:, 2, :16], table[:1, 2, :16].expand(3, -1))  # columns: the same in all rows
    torch.testing.assert_close(table[1, :, 16:], table[1, :1, 16:].expand(5, -1))
    torch.testing.assert_close(table[2, 3, 0], torch.tensor(3.0).sin())
    torch.testing.assert_close(table[2, 3, 24], torch.tensor(2.0).cos())


@pytest.mark.parametrize("fused_attention", [False, True])
@pytest.mark.parametrize(("prefix", "qk_norm"), [(0, False), (3, False), (1, True)])
def test_rotary_attention_equals_timms(prefix: int, qk_norm: bool, fused_attention: bool) -> None:
    torch.manual_seed(0)
    layer = SelfAttention(64, 4, qk_norm=qk_norm, fused_attention=fused_attention)
    theirs = timm.layers.AttentionRope(
        64, 4, num_prefix_tokens=prefix, qk_norm=qk_norm, norm_layer=timm.layers.LayerNorm, rotate_half=True
    )
    theirs.load_state_dict(layer.state_dict())
    theirs.fused_attn = fused_attention
    rope = timm.layers.RotaryEmbeddingCat(16, in_pixels=False, temperature=100.0, rotate_half=True).get_embed([3, 5])
    x = torch.randn(2, prefix + 15, 64)
    table = rotary2d(16, (3, 5), prefix)
    torch.testing.assert_close(layer(x, None, table), theirs(x, rope=rope), atol=1e-6, rtol=1e-5)
    assert (layer(x) - layer(x, None, table)).abs().max() > 1e-3
    # Of the first tokens only, as in a last block that the head reads one token of.
    torch.testing.assert_close(layer(x, 2, table), layer(x, None, table)[:, :2], atol=1e-6, rtol=1e-5)


def test_rotated_products_depend_only_on_the_distance_of_patches() -> None:
    query, key = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0)).expand(-1, -1, -1, 30, -1)
    table = rotary2d(16, (5, 6))
    scores = (rotate(query, table) @ rotate(key, table).mT).reshape(5, 6, 5, 6)
    torch.testing.assert_close(scores[:-1, :-2, :-1, :-2], scores[1:, 2:, 1:, 2:], atol=1e-5, rtol=1e-5)
    offsets = scores[2, 3].flatten()
    assert len(torch.unique(offsets.round(decimals=4))) == 30  # each distance and direction has its own


def test_biases_are_learned_without_the_fused_kernel_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, biases, x = SelfAttention(32, 2), RelativePositionBias((8, 8), 2, 0), torch.randn(1, 64, 32)
    with torch.no_grad():
        expected = layer(x, bias=biases(None))  # fused
    monkeypatch.delattr(torch.nn.functional, "scaled_dot_product_attention")
    torch.testing.assert_close(layer(x, bias=biases(None)), expected, atol=1e-6, rtol=1e-5)
    with torch.no_grad(), pytest.raises(AttributeError):
        layer(x, bias=biases(None))


@pytest.mark.parametrize("fused_attention", [False, True])
@pytest.mark.parametrize("prefix", [0, 1])
def test_attention_with_relative_biases_equals_timms(prefix: int, fused_attention: bool) -> None:
    torch.manual_seed(0)
    layer = SelfAttention(64, 4, fused_attention=fused_attention)
    biases = RelativePositionBias((3, 5), 4, prefix)
    torch.nn.init.normal_(biases.table)
    their_biases = partial(timm.layers.RelPosBias, window_size=(3, 5), prefix_tokens=prefix)
    theirs = RelPosAttention(64, 4, qkv_bias=True, rel_pos_cls=their_biases)
    of_prefix = torch.zeros(3 * prefix, 4)  # timm's class token has biases, too
    table = {"rel_pos.relative_position_bias_table": torch.cat([biases.table, of_prefix])}
    theirs.load_state_dict({**layer.state_dict(), **table})
    x = torch.randn(2, prefix + 15, 64)
    found = layer(x, bias=biases(None))
    torch.testing.assert_close(found, theirs(x), atol=1e-6, rtol=1e-5)
    assert (layer(x) - found).abs().max() > 1e-3
    # Of the first tokens only, as in a last block that the head reads one token of.
    torch.testing.assert_close(layer(x, 2, bias=biases(None)), found[:, :2], atol=1e-6, rtol=1e-5)


def test_relative_biases_begin_with_a_slope_for_each_head() -> None:
    bias = RelativePositionBias((4, 6), 3, 2)(None)
    assert bias.shape == (1, 3, 26, 26)
    assert not bias[:, :, :2].any()
    assert not bias[:, :, :, :2].any()
    assert RelativePositionBias((4, 6), 1, 0).table.any()  # a single head has a slope, too
    of_patches = bias[0, :, 2:, 2:].reshape(3, 4, 6, 4, 6)
    torch.testing.assert_close(of_patches[:, 0, 1, 3, 5], torch.tensor([-5.0, -2.5, 0.0]))  # 3 rows, 4 columns


@pytest.mark.parametrize("kind", ["rotary", "relative_bias"])
@pytest.mark.parametrize("changes", [{}, {"pool": "cls", "registers": 2}, {"layer_scale": 0.3}], ids=str)
def test_dropped_patches_take_their_positions_with_them(kind: str, changes: dict[str, Any]) -> None:
    model = make(**{kind: True}, pos_embed="none", patch_dropout=0.5, **changes).train()
    images = images_for(model)
    kept: list[Tensor] = []
    assert model.patch_drop is not None
    model.patch_drop.register_forward_hook(lambda _, __, output: kept.append(output[1]))
    with full_output(model):
        tokens = model.forward_features(images)
        seen: list[Tensor] = []
        model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model.eval()(images)  # embeds all patches
    prefix = model.num_prefix_tokens
    for image, places, found in zip(seen[0], kept[0], tokens, strict=True):
        rows = torch.cat([torch.arange(prefix), places + prefix])
        x = image[rows].unsqueeze(0)
        with full_output(model):
            rotation = None if model.rotation is None else model.rotation[rows]
            bias = None if model.relative_bias is None else model.relative_bias(None)[:, :, rows][..., rows]
            for block in model.blocks:
                x = block(x, rotation, bias)
        torch.testing.assert_close(model.norm(x)[0], found, atol=1e-5, rtol=1e-4)
    assert not torch.equal(kept[0], kept[0].sort(dim=1).values)  # the order of the kept patches is random


def test_heads_that_cannot_be_rotated_are_refused() -> None:
    with pytest.raises(ValueError, match="rotary=true needs embed_dim / num_heads to be a multiple of 4, not 6"):
        make(rotary=True, embed_dim=24)
