"""A model of one's own is refused before training if it does not give logits of the run's classes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from config.test_compose import composed
from conftest import SMALL_MODEL, SMALL_RUN, Command

from vitlab.config.instantiate import build_network
from vitlab.errors import UserError
from vitlab.experiment import resolve
from vitlab.loaded_model import rebuild_network
from vitlab.models.execution import check_logits

DEMO = ["experiment=demo", "data.num_classes=10"]


def built(folder: Path, target: str) -> tuple[Any, Any]:
    overrides = [*DEMO, f"model._target_={target}"]
    config = resolve(composed(folder, *overrides), None, overrides)
    return config, build_network(config.model)


@pytest.mark.parametrize(
    ("name", "found"),
    [("ThousandClasses", "logits [2, 1000]"), ("ReturnsATuple", "a tuple"), ("Sound", ""), ("Blind", "")],
)
def test_logits_of_other_classes_are_refused(name: str, found: str, tmp_path: Path) -> None:
    config, network = built(tmp_path, f"preflight.networks.{name}")
    modes, state = [m.training for m in network.modules()], torch.get_rng_state()
    if found:
        with pytest.raises(UserError) as error:
            check_logits(config, network)
        assert f"{name} gives {found} for 2 images" in str(error.value)
        assert "[2, 10]" in str(error.value)
    else:
        check_logits(config, network)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in network.modules()] == modes
    if found:
        with pytest.raises(UserError, match=name):  # of a run that was trained before vitlab refused it
            rebuild_network(config, {}, tmp_path, ["preflight."])


def test_a_model_that_fails_is_left_to_preflight(tmp_path: Path) -> None:
    check_logits(*built(tmp_path, "preflight.networks.WrongSize"))


@pytest.mark.parametrize("target", ["torchvision.models.resnet18", "torchvision.models.vit_b_32"])
def test_a_signature_with_any_keys_gets_the_number_of_classes(target: str, tmp_path: Path) -> None:
    config, network = built(tmp_path, target)
    assert config.model == {"_target_": target, "weights": None, "num_classes": 10}
    assert list(network.parameters())[-1].shape == (10,)
    check_logits(config, network)


def test_training_without_preflight_refuses_too(in_process: Command, tmp_path: Path) -> None:
    own = ["preflight=off", "model._target_=preflight.networks.ThousandClasses"]
    result = in_process("train.py", *SMALL_RUN[: -len(SMALL_MODEL)], *own)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("manifest.json"))
