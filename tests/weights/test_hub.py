"""timm's own weights: from a hub on localhost, from the cache, and where there is neither."""

from pathlib import Path

import pytest
import timm
import torch
from conftest import HUB_FILE, HUB_NAME
from huggingface_hub import constants

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
