"""Without the loggers' packages: by what they are handed."""

from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from vitlab.config.instantiate import build
from vitlab.runs.loggers import clear_logger_run_id, logger_run_id, resume_kwargs


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
def test_a_run_is_resumed_under_the_id_that_its_logger_gave_it(logger: dict[str, Any], name: str) -> None:
    key = list(logger)[-1]
    target = f"{__name__}.{'WandbLogger' if key == 'id' else 'MLFlowLogger'}"
    config = OmegaConf.create({"_target_": target, **logger})
    assert logger_run_id(build(config, "logger")) == {key: name}
    assert logger_run_id(None) == {}

    kept = OmegaConf.create({**config, key: "another"})
    again = build(kept, "logger", **resume_kwargs(kept, 7))
    assert (again.experiment.id if key == "id" else again.run_id) == "another"
    assert clear_logger_run_id(kept) == {**config, key: None}
