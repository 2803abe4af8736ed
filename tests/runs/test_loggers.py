"""Without the loggers' packages: by what they are handed."""

from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from vitlab.config.instantiate import map_texts
from vitlab.runs.loggers import build_loggers, clear_logger_run_ids, logger_run_ids


class WandbLogger:
    def __init__(self, project: str, id: str | None) -> None:
        self.experiment = SimpleNamespace(id=id or "w7")


class MLFlowLogger:
    def __init__(self, experiment_name: str, run_id: str | None) -> None:
        self.run_id = run_id or "m7"


WANDB = {"_target_": f"{__name__}.WandbLogger", "project": "p", "id": None}
MLFLOW = {"_target_": f"{__name__}.MLFlowLogger", "experiment_name": "e", "run_id": None}


@pytest.mark.parametrize(
    ("group", "ids"),
    [
        (WANDB, {"id": "w7"}),
        (MLFLOW, {"run_id": "m7"}),
        ({"w": WANDB, "m": MLFLOW, "off": None}, {"w": {"id": "w7"}, "m": {"run_id": "m7"}}),
    ],
)
def test_a_run_is_resumed_under_the_ids_that_its_loggers_gave_it(group: dict[str, Any], ids: dict[str, Any]) -> None:
    config = OmegaConf.create(group)
    assert logger_run_ids(build_loggers(config, None)) == ids
    others = map_texts(ids, str.upper)
    kept = OmegaConf.merge(config, others)
    assert logger_run_ids(build_loggers(kept, 7)) == others  # type: ignore[arg-type]
    assert clear_logger_run_ids(kept) == config  # type: ignore[arg-type]


def test_no_logger_has_no_id() -> None:
    assert logger_run_ids(build_loggers(None, None)) == {}
