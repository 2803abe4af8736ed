"""Without the loggers' packages: by what they are handed."""

from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from vitlab.config.instantiate import build
from vitlab.runs.loggers import clear_logger_run_id, resume_kwargs, save_logger_run_id


class WandbLogger:
    def __init__(self, project: str, id: str | None) -> None:
        self.experiment = SimpleNamespace(id=id or "w7")


class MLFlowLogger:
    def __init__(self, experiment_name: str, run_id: str | None) -> None:
        self.run_id = run_id or "m7"


@pytest.mark.parametrize(
    ("logger", "name"),
    [({"project": "p", "id": None}, "w7"), ({"experiment_name": "e", "run_id": None}, "m7")],
)
def test_a_run_goes_on_under_the_name_that_its_logger_gave_it(logger: dict[str, Any], name: str) -> None:
    key = list(logger)[-1]
    target = f"{__name__}.{'WandbLogger' if key == 'id' else 'MLFlowLogger'}"
    resolved: dict[str, Any] = {"logger": {"_target_": target, **logger}}
    trainer: Any = SimpleNamespace(loggers=[build(OmegaConf.create(resolved["logger"]), "logger")])
    save_logger_run_id(trainer, resolved)
    assert resolved["logger"][key] == name

    kept = OmegaConf.create(resolved["logger"])
    kept[key] = "another"
    again = build(kept, "logger", **resume_kwargs(kept, 7))
    assert (again.experiment.id if key == "id" else again.run_id) == "another"
    clear_logger_run_id(kept)
    assert kept[key] is None
