"""Several processes talk to each other no more often than they must: on GPUs each answer makes the host wait."""

import json
from pathlib import Path

import pytest
from distributed.test_processes import DDP, RUN, by_fork


def test_ordinary_steps_only_reduce_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    counter = "+callbacks.collectives._target_=collectives.CollectiveCounter"
    rare = ["trainer.max_epochs=1", "trainer.log_every_n_steps=50", "callbacks.progress=null", "augment.mixing.p=0"]
    assert by_fork(tmp_path, 2, [*RUN, *DDP, *rare, counter]) == [0, 0]
    steps = json.loads((tmp_path / "collectives.json").read_text())
    assert len(steps) == 6
    assert steps[:-1] == [[]] * 5  # the last one of an epoch logs, validates and saves
