"""Fitting weights into models; timm's own loading is the reference."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from models.test_vision_transformer import images_for, make
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn

from vitlab.errors import UserError
from vitlab.models import timm_model
from vitlab.models.timm_models import full_output
from vitlab.weights import Weights, fit_weights
from vitlab.weights.loading import read_file

CLASSES = [str(number) for number in range(10)]


def timm_file(name: str, folder: Path, **kwargs: Any) -> Path:
    """Weights that timm made, in the file that timm would download."""
    torch.manual_seed(3)
    network = timm.create_model(name, pretrained=False, **kwargs)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_file(network.state_dict(), folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


@pytest.mark.parametrize(
    ("name", "image_size", "kwargs"),
    [
        ("test_vit", 160, {}),
        ("test_vit", 96, {}),
        ("test_vit", 224, {}),
        ("test_vit", 160, {"patch_size": 8}),
        ("vit_tiny_patch16_224", 32, {"patch_size": 4}),
        ("test_vit2", 64, {}),
        ("test_resnet", 64, {}),
        ("test_convnext", 64, {}),
        ("test_efficientnet", 64, {}),
        pytest.param("swin_tiny_patch4_window7_224", 112, {}, marks=pytest.mark.slow),  # 28 M parameters, twice
    ],
    ids=str,
)
def test_timm_models_get_the_weights_that_timm_gives_them(
    name: str, image_size: int, kwargs: dict[str, Any], tmp_path: Path
) -> None:
    file = timm_file(name, tmp_path)
    network = timm_model(name, num_classes=10, image_size=image_size, kwargs=kwargs)
    report = fit_weights(network, read_file(file), CLASSES)

    sizes = {"img_size": image_size} if "vit" in name or "swin" in name else {}
    oracle = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, num_classes=10, **sizes, **kwargs
    )
    expected, state = oracle.state_dict(), network.state_dict()
    assert state.keys() == expected.keys()
    for key in state:
        if key not in report.new_head:
            assert torch.equal(state[key], expected[key]), key
    assert len(report.new_head) == 2
    assert report.complete
    resampled = {"pos_embed"} if image_size == 96 and name == "test_vit" else set()
    assert resampled <= set(report.resampled)


def test_weights_made_by_timm_load_bit_for_bit(tmp_path: Path) -> None:
    file = timm_file("test_vit", tmp_path, num_classes=10)
    network = timm_model("test_vit", num_classes=10, image_size=160).eval()
    report = fit_weights(network, read_file(file), CLASSES)
    original = timm.create_model("test_vit", num_classes=10, checkpoint_path=str(file)).eval()
    assert report.new_head == []
    assert (len(report.loaded), report.fraction) == (80, 1.0)
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in network.state_dict().items())
    images = torch.randn(3, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with full_output(network):  # matrix products of other sizes round differently
        assert torch.equal(network(images), original(images))
    torch.testing.assert_close(network(images), original(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize(
    "changes", [{"image_size": 48}, {"patch_size": 4}, {"image_size": 64, "patch_size": 4}], ids=str
)
def test_our_vit_resamples_like_timms(pool: str, changes: dict[str, Any]) -> None:
    source = make(pool=pool)
    network, oracle = make(pool=pool, **changes), make(pool=pool, **changes)
    report = fit_weights(network, Weights("a test", source.state_dict()), CLASSES)
    assert report.complete
    assert "pos_embed" in report.resampled
    assert ("patch_embed.proj.weight" in report.resampled) == ("patch_size" in changes)

    sizes = {"image_size": 32, "patch_size": 8, **changes}
    theirs = timm.models.VisionTransformer(
        img_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        num_classes=10,
        embed_dim=48,
        depth=3,
        num_heads=4,
        mlp_ratio=2.0,
        class_token=pool == "cls",
        global_pool="token" if pool == "cls" else "avg",
        fc_norm=False,
    )
    theirs.load_state_dict(checkpoint_filter_fn(source.state_dict(), theirs))
    torch.testing.assert_close(network(images_for(oracle)), theirs.eval()(images_for(oracle)), atol=1e-5, rtol=0)


def test_registers_keep_their_positions_during_resampling() -> None:
    source, network = make(pool="cls", registers=2), make(pool="cls", registers=2, image_size=64)
    assert fit_weights(network, Weights("a test", source.state_dict()), CLASSES).complete
    assert source.pos_embed is not None
    assert network.pos_embed is not None
    assert network.pos_embed.shape == (1, 3 + 64, 48)
    assert torch.equal(network.pos_embed[:, :3], source.pos_embed[:, :3])


def test_relative_biases_are_resampled_around_the_query() -> None:
    source, network = make(relative_bias=True), make(relative_bias=True, image_size=64)
    report = fit_weights(network, Weights("a test", source.state_dict()), CLASSES)
    assert report.complete
    assert report.resampled["relative_bias.table"] == ([7 * 7, 4], [15 * 15, 4])
    assert source.relative_bias is not None
    assert network.relative_bias is not None
    before, after = source.relative_bias.table.reshape(7, 7, 4), network.relative_bias.table.reshape(15, 15, 4)
    torch.testing.assert_close(after[7, 7], before[3, 3])  # of a patch with itself
    # The directions stay: what lies to the right still does.
    nearer = torch.nn.functional.interpolate(before.movedim(-1, 0).unsqueeze(0), size=(15, 15), mode="bilinear")
    assert (after - nearer[0].movedim(0, -1)).norm() < 0.5 * (after - nearer[0].movedim(0, -1).flip(1)).norm()


@pytest.mark.parametrize(
    ("stem", "reshaped"), [("shifted", {"norm.weight", "norm.bias", "proj.weight"}), ("conv", None)]
)
def test_stem_weights_that_cannot_be_resampled_are_reported(stem: str, reshaped: set[str] | None) -> None:
    report = fit_weights(make(stem=stem, patch_size=4), Weights("a test", make(stem=stem).state_dict()), CLASSES)
    assert list(report.resampled) == ["pos_embed"]
    assert set(report.reshaped) == {f"patch_embed.{name}" for name in reshaped or {"convs.1.weight"}}


def test_fixed_positions_in_a_file_are_ignored() -> None:
    network = make(pos_embed="sincos2d")
    assert network.pos_embed is not None
    state = {**network.state_dict(), "pos_embed": network.pos_embed.clone()}
    assert fit_weights(make(pos_embed="sincos2d"), Weights("a test", state), CLASSES).complete


@pytest.mark.parametrize("shape", [(1, 2, 48), (1, 5, 48), (16, 48), (48,)], ids=str)
def test_positions_of_no_grid_are_reported(shape: tuple[int, ...]) -> None:
    network = make(pool="cls", registers=4)  # five tokens before the patches
    state = {**network.state_dict(), "pos_embed": torch.zeros(shape)}
    assert list(fit_weights(network, Weights("a.pth", state), CLASSES).reshaped) == ["pos_embed"]


def test_a_head_of_another_width_stays_random_and_is_reported() -> None:
    source, network = make(num_classes=1000), make()
    before = network.head.weight.clone()
    report = fit_weights(network, Weights("a.pth", source.state_dict()), CLASSES)
    assert report.new_head == ["head.weight", "head.bias"]
    assert torch.equal(network.head.weight, before)
    assert "new head, random: head.weight, head.bias" in report.describe("a.pth")
    assert report.complete


def test_a_head_for_other_classes_of_the_same_number_stays_random() -> None:
    source, network = make(), make()
    source.head.bias.data += 1
    other = Weights("a.pth", source.state_dict(), classes=[*CLASSES[:9], "another"])
    assert fit_weights(network, other, CLASSES).new_head == ["head.weight", "head.bias"]
    same = Weights("a.pth", source.state_dict(), classes=CLASSES)
    assert fit_weights(network, same, CLASSES).new_head == []
    assert torch.equal(network.head.bias, source.head.bias)


def test_a_file_without_a_head() -> None:
    state = {name: tensor for name, tensor in make().state_dict().items() if not name.startswith("head")}
    report = fit_weights(make(), Weights("a.pth", state), CLASSES)
    assert report.new_head == ["head.weight", "head.bias"]
    assert report.complete


def test_missing_unexpected_and_reshaped_tensors_are_reported() -> None:
    source = make(depth=4).state_dict()
    del source["norm.bias"]
    source["blocks.0.mlp.fc1.bias"] = torch.zeros(7)
    report = fit_weights(make(), Weights("a.pth", source), CLASSES)
    assert not report.complete
    assert report.missing == ["norm.bias"]
    assert report.reshaped == {"blocks.0.mlp.fc1.bias": ([7], [96])}
    assert set(report.unexpected) == {name for name in source if name.startswith("blocks.3.")}
    text = report.describe("a.pth")
    for line in ("missing in the file, random here: norm.bias", "blocks.0.mlp.fc1.bias [7] -> [96]", "and 6 more"):
        assert line in text
    assert "weights: 41 of 43 tensors" in text


@pytest.mark.parametrize(
    "state",
    [
        {"encoder.layers.0.weight": torch.zeros(2, 2)},
        make(embed_dim=64).state_dict(),  # the right names, every size another
        {"head.weight": torch.zeros(1000, 48)},
    ],
    ids=["other names", "other sizes", "a head alone"],
)
def test_a_file_in_which_nothing_fits_is_refused(state: dict[str, torch.Tensor]) -> None:
    network = make()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError, match=r"nothing in a\.pth fits the model"):
        fit_weights(network, Weights("a.pth", state), CLASSES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_file_in_which_nothing_fits_a_timm_model_is_refused() -> None:
    network = timm_model("test_vit", num_classes=10, image_size=160)
    with pytest.raises(UserError, match=r"nothing in a\.pth fits the model"):
        fit_weights(network, Weights("a.pth", {"conv.weight": torch.zeros(3)}), CLASSES)


def test_nan_values_are_refused() -> None:
    state = make().state_dict()
    state["blocks.1.mlp.fc1.weight"][3, 4] = float("nan")
    with pytest.raises(UserError, match=r"a\.pth holds NaN or infinite values in blocks\.1\.mlp\.fc1\.weight"):
        fit_weights(make(), Weights("a.pth", state), CLASSES)


def test_a_file_that_timm_cannot_translate_is_used_unchanged() -> None:
    network = timm_model("test_vit", num_classes=10, image_size=160)
    state = network.state_dict()
    del state["cls_token"]
    state["pos_embed"] = state["pos_embed"][:, 2:]
    report = fit_weights(timm_model("test_vit", num_classes=10, image_size=160), Weights("a.pth", state), CLASSES)
    assert (list(report.reshaped), report.missing) == (["pos_embed"], ["cls_token"])
    assert not report.complete
