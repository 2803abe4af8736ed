import io
import os
import pickle
import shutil
import warnings
from pathlib import Path, PurePath
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from omegaconf import OmegaConf
from torch import nn

from vitlab.distributed.sharded_checkpoint import (
    GROUPS,
    _PlainUnpickler,
    consolidated,
    put_in_place,
    write_shards,
)
from vitlab.distributed.strategies import FullySharded
from vitlab.errors import UserError
from vitlab.runs.calibration import read_temperature, write_calibration
from vitlab.runs.checkpoint import read_checkpoint
from vitlab.runs.directory import RunDirectory
from vitlab.weights.loading import read_file, weights_to_start_from

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
NAMES = ["network.weight", "network.bias"]


def trained() -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([{"params": [layer.weight]}, {"params": [layer.bias], "weight_decay": 0.0}], lr=0.1)
    layer(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return layer, optimizer


def save(path: Path, number: int) -> dict[str, Any]:
    """Writes what a process alone would write of a small run; gives what a file would hold."""
    layer, optimizer = trained()
    state = optimizer.state_dict()
    weights = {f"network.{name}": tensor for name, tensor in layer.state_dict().items()}
    by_name = {name: state["state"][place] for place, name in enumerate(NAMES)}
    groups = [{**group, "params": [NAMES[p] for p in group["params"]]} for group in state["param_groups"]]
    folder = path.with_name(f"{path.name}.{number}")
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_shards({"state_dict": weights, "optimizer_0": by_name}, folder)
    rest = {"epoch": number, "vitlab_config": {"model": {}, "data": {}}}
    put_in_place({**rest, GROUPS: [groups]}, folder, path)
    return {**rest, "state_dict": weights, "optimizer_states": [state]}


@pytest.fixture
def sharded_run(small_run: Path, tmp_path: Path) -> Path:
    """A finished run with the checkpoints, without optimizers, that sharded processes would have written."""
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    for file in list((run / "checkpoints").iterdir()):
        checkpoint = torch.load(file, weights_only=True)
        file.unlink()
        folder = file.with_name(f"{file.name}.1")
        folder.mkdir()
        write_shards({"state_dict": checkpoint.pop("state_dict")}, folder)
        put_in_place({**checkpoint, GROUPS: []}, folder, file)
    return run


def test_shards_put_together_are_what_one_process_would_have_written(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    expected = save(path, 1)
    found = consolidated(path)
    torch.testing.assert_close(found.pop("state_dict"), expected.pop("state_dict"), rtol=0, atol=0)
    (state,), (known,) = found.pop("optimizer_states"), expected.pop("optimizer_states")
    torch.testing.assert_close(state["state"], known["state"], rtol=0, atol=0)
    assert state["param_groups"] == known["param_groups"]
    assert found == expected
    _, optimizer = trained()
    optimizer.load_state_dict(state)


def test_a_later_checkpoint_takes_the_place_of_the_earlier_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save(path, 1)
    save(path, 2)
    assert read_checkpoint(path)["epoch"] == 2
    assert {entry.name for entry in tmp_path.iterdir()} == {"last.ckpt", "last.ckpt.2"}
    (tmp_path / "last.ckpt.3").mkdir()  # a third, by processes that were killed before they were done
    assert read_checkpoint(path)["epoch"] == 2


def test_a_checkpoint_is_removed_with_its_shards(tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path / f"top_epoch_00{number}.ckpt", number)
    strategy = FullySharded(timeout_seconds=1, sharded_checkpoints=True, process_group_backend=None)
    strategy.remove_checkpoint(str(tmp_path / "top_epoch_001.ckpt"))
    assert {entry.name for entry in tmp_path.iterdir()} == {"top_epoch_002.ckpt", "top_epoch_002.ckpt.2"}


def test_a_temperature_belongs_to_the_shards_that_it_was_found_for(tmp_path: Path) -> None:
    run, path = RunDirectory(tmp_path), tmp_path / "checkpoints" / "best.ckpt"
    save(path, 1)
    write_calibration(run, {"temperature": 1.5}, path, "raw")
    assert read_temperature(run, path, "raw") == 1.5
    (path / "__0_0.distcp").write_bytes(b"of other weights")
    with pytest.raises(UserError, match="is of other weights"):
        read_temperature(run, path, "raw")


@pytest.mark.parametrize(("source", "name"), [("", "best.ckpt"), ("checkpoints/last.ckpt", "last.ckpt")])
def test_a_new_run_starts_from_sharded_weights(source: str, name: str, sharded_run: Path, small_run: Path) -> None:
    config: Any = OmegaConf.load(sharded_run / "config.yaml")
    config.init_from = str(sharded_run / source)
    weights, expected = weights_to_start_from(config), read_file(small_run / "checkpoints" / name)
    assert weights is not None
    assert weights.fingerprint() == expected.fingerprint()
    assert (weights.input, weights.classes) == (expected.input, expected.classes)
    assert weights.input_origin == str(sharded_run / "checkpoints" / name)


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def test_an_index_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path, canary = tmp_path / "last.ckpt", tmp_path / "canary"
    save(path, 1)
    (path / ".metadata").write_bytes(pickle.dumps(Evil(canary)))
    with pytest.raises(
        UserError, match=r"can't be read as a checkpoint.*its index holds posix.system, which is not data"
    ):
        read_checkpoint(path)
    assert not canary.exists()


def test_a_value_that_is_no_tensor_is_not_unpickled(tmp_path: Path) -> None:
    path, canary = tmp_path / "last.ckpt", tmp_path / "canary"
    save(path, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"state_dict": {"network.weight": Evil(canary)}}, checkpoint_id=path)
    canary.unlink(missing_ok=True)  # saving copies it
    with pytest.raises(UserError, match="can't be read as a checkpoint"):
        read_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b""])
@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "rest.pt"])
def test_damaged_shards_are_refused(name: str, damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save(path, 1)
    (path / name).write_bytes(damage((path / name).read_bytes()))
    with pytest.raises(UserError, match="can't be read as a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["pathlib\nPosixPath", "pathlib._local\nPosixPath", "pathlib\nWindowsPath"])
def test_an_index_that_another_python_or_system_wrote_is_read(name: str) -> None:
    pickled = f"c{name}\n(S'runs'\ntR.".encode()  # Python 3.13 has its paths in pathlib._local
    assert _PlainUnpickler(io.BytesIO(pickled)).load() == PurePath("runs")
