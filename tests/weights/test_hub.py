"""timm's own weights: from a hub on localhost, from the cache, and where there is neither."""

from pathlib import Path

import pytest
import timm
import torch
from conftest import HUB_FILE, HUB_NAME
from huggingface_hub import constants
from safetensors.torch import save_file

from vitlab.errors import UserError
from vitlab.models import timm_facts
from vitlab.weights.hub import fetch

NOWHERE = "http://127.0.0.1:9"
TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"


def test_weights_come_from_the_hub_and_then_from_the_cache(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    expected = timm.create_model(HUB_NAME, pretrained=False).state_dict()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for endpoint in (hub, NOWHERE):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + TEMPLATE)
        state = fetch(timm_facts(HUB_NAME))
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_without_hub_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", NOWHERE + TEMPLATE)
    with pytest.raises(UserError, match=rf"get {NOWHERE}/{HUB_FILE}, copy the file here.*model\.weights=<file>"):
        fetch(timm_facts(HUB_NAME))


def test_a_network_without_weights() -> None:
    name = next(name for name in timm.list_models() if not timm.models.get_pretrained_cfg(name).has_weights)
    with pytest.raises(UserError, match=rf"timm has no weights of {name}"):
        fetch(timm_facts(name))


# Of most of timm's ViTs the file at their authors' own address is of another format than that on the hub.
CUSTOM = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def test_a_network_whose_authors_published_another_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert timm_facts(CUSTOM).custom_load
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", NOWHERE + TEMPLATE)
    with monkeypatch.context() as no_download:
        # The hub is asked once, here, and not again and again by its client.
        no_download.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was asked to download"))
        with pytest.raises(UserError, match=f"the weights of {CUSTOM} could not be had"):
            fetch(timm_facts(CUSTOM))

    folder = tmp_path / f"models--timm--{CUSTOM}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    file = folder / "snapshots" / ("0" * 40) / "model.safetensors"
    file.parent.mkdir(parents=True)
    expected = timm.create_model(CUSTOM, pretrained=False).state_dict()
    save_file(expected, file)
    state = fetch(timm_facts(CUSTOM))
    assert all(torch.equal(state[name], expected[name]) for name in expected)

    file.write_bytes(b"cut off")
    with pytest.raises(UserError, match=rf"{file}, the cached weights of {CUSTOM}, can't be read: delete it"):
        fetch(timm_facts(CUSTOM))
