import os
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from omegaconf import OmegaConf

from vitlab.errors import UserError
from vitlab.loaded_model import rebuild_network
from vitlab.runs.checkpoint import CONFIG_KEY, WholeCheckpointIO, read_checkpoint


class Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, ("owned",)


def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({CONFIG_KEY: Hostile()}, "zip.ckpt")
    Path("bare.ckpt").write_bytes(pickle.dumps(Hostile(), protocol=2))
    for name in ("zip.ckpt", "bare.ckpt"):
        with pytest.raises(UserError, match="can't be read as a checkpoint"):
            read_checkpoint(Path(name))
    assert not Path("owned").exists()


def test_a_cut_empty_or_strange_file_is_refused_by_name(tmp_path: Path, small_run: Path) -> None:
    whole = (small_run / "checkpoints" / "best.ckpt").read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("text", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_checkpoint(tmp_path / name)
    torch.save({"state_dict": {}}, tmp_path / "other")
    with pytest.raises(UserError, match="no checkpoint of vitlab's"):
        read_checkpoint(tmp_path / "other")
    with pytest.raises(UserError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "nothing")


def test_a_checkpoint_holds_plain_data_and_rebuilds_its_network_alone(small_run: Path) -> None:
    file = small_run / "checkpoints" / "best.ckpt"
    checkpoint = read_checkpoint(file)  # weights_only=True

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(k, str | int) and plain(v) for k, v in value.items())
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        return value is None or isinstance(value, bool | int | float | str | torch.Tensor)

    assert plain(checkpoint)
    config = OmegaConf.create(checkpoint[CONFIG_KEY])
    network = rebuild_network(config, checkpoint, file, [])
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_only_trusted_targets_are_built(small_run: Path) -> None:
    file = small_run / "checkpoints" / "best.ckpt"
    checkpoint = read_checkpoint(file)
    config = OmegaConf.create(checkpoint[CONFIG_KEY])
    config.model._target_ = "collections.OrderedDict"
    with pytest.raises(
        UserError, match=r"collections.OrderedDict, which is not vitlab's.*trusted_targets=\[collections.\]"
    ):
        rebuild_network(config, checkpoint, file, [])
    with pytest.raises(AttributeError):  # trusted: it is built, and turns out to be no network
        rebuild_network(config, checkpoint, file, ["collections."])


def test_weights_of_another_network_are_refused(small_run: Path) -> None:
    file = small_run / "checkpoints" / "best.ckpt"
    checkpoint = read_checkpoint(file)
    config = OmegaConf.create(checkpoint[CONFIG_KEY])
    config.model.depth = 3
    with pytest.raises(UserError, match="do not fit the model of the config"):
        rebuild_network(config, checkpoint, file, [])


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"step": 1}, file)

    def full_disk(content: Any, target: BinaryIO) -> None:
        target.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        WholeCheckpointIO().save_checkpoint({"step": 2}, file)
    assert torch.load(file, weights_only=True) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
