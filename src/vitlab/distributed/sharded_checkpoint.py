"""Sharded checkpoints: a folder into which every process writes its shard.

`last.ckpt` is a link to the folder `last.ckpt.<number>`, so that it changes in one step. The folder holds weights and
optimizer state as torch.distributed.checkpoint writes them, and everything else in `rest.pt`.
"""

import pickle
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from vitlab.files import replacing

REST = "rest.pt"
GROUPS = "optimizer_groups"
# The classes that the index of a folder (`.metadata`, a pickle) may contain.
PLAIN = {
    **dict.fromkeys(("Metadata", "TensorStorageMetadata", "TensorProperties"), "torch.distributed.checkpoint.metadata"),
    **dict.fromkeys(("ChunkStorageMetadata", "MetadataIndex"), "torch.distributed.checkpoint.metadata"),
    **dict.fromkeys(("_MEM_FORMAT_ENCODING", "StorageMeta"), "torch.distributed.checkpoint.metadata"),
    "_StorageInfo": "torch.distributed.checkpoint.filesystem",
    "_get_layout": "torch.serialization",
    "Size": "torch",
}
PATHS = ("PosixPath", "WindowsPath")  # in the index: the folder that it was written to


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in PATHS and module in ("pathlib", "pathlib._local"):  # that of Python 3.13
            return PurePath  # the other system's can't be made
        if PLAIN.get(name) == module or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise ValueError(f"its index holds {module}.{name}, which is not data")


class _ShardReader(dcp.FileSystemReader):
    """Read a folder from an untrusted source; torch's own reader would execute code that its index names."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata: Metadata = _PlainUnpickler(file).load()
        others = [n for n, kind in metadata.state_dict_metadata.items() if not isinstance(kind, TensorStorageMetadata)]
        if others:
            raise ValueError(f"its index holds {others[0]}, which is not a tensor")
        return metadata


def read_index(folder: Path) -> dict[str, Any]:
    """Read the names, sizes and types of the tensors in a folder."""
    return dict(_ShardReader(folder).read_metadata().state_dict_metadata)


def write_shards(tensors: dict[str, Any], folder: Path) -> None:
    """Write this process's shard of a nested dict of tensors; every process must call it."""
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder))


def read_shards(tensors: dict[str, Any], folder: Path, *, alone: bool = False) -> None:
    """Fill the tensors of a nested dict, sharded or whole, in place; unless `alone`, every process must call it.
    ValueError if the shards are damaged, or their index holds something other than data."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # `alone` means that
        try:
            dcp.load(tensors, storage_reader=_ShardReader(folder), no_dist=alone)
        except CheckpointException as error:  # a BaseException
            reason = next(iter(error.failures.values()))[0]
            kind = type(reason).__name__
            raise ValueError(f"its shards are damaged or belong to another model: {kind} {reason}") from error


def put_in_place(rest: dict[str, Any], folder: Path, path: Path) -> None:
    """Complete a folder of shards, make `path` a link to it, and remove the folder it pointed to before."""
    with replacing(folder / REST) as temporary, temporary.open("wb") as file:
        torch.save(rest, file)
    link = path.with_name(f".{path.name}.link.tmp")
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name, target_is_directory=True)
    if path.is_dir() and not path.is_symlink():  # a copy made without links
        path.rename(path.with_name(f"{path.name}.0"))
    link.replace(path)
    remove_folders(path, keep=folder.name)


def remove_folders(path: Path, keep: str | None = None) -> None:
    """Remove the folders that were written for the link `path`, all but the one named `keep`."""
    for folder in path.parent.glob(f"{path.name}.*"):
        if folder.name != keep and folder.is_dir():
            shutil.rmtree(folder)


def is_sharded(path: Path) -> bool:
    """Whether a path is a folder that holds a whole checkpoint."""
    return (path / REST).is_file()


def read_rest(folder: Path) -> dict[str, Any]:
    """Read everything except weights and optimizer state."""
    return dict(torch.load(folder / REST, map_location="cpu", weights_only=True))


def consolidated(folder: Path) -> dict[str, Any]:
    """Gather the checkpoint on the CPU, in the form that a single process writes."""
    rest = read_rest(folder)
    flat = {name: torch.empty(kind.size, dtype=kind.properties.dtype) for name, kind in read_index(folder).items()}
    read_shards(flat, folder, alone=True)
    rest["state_dict"] = _below(flat, "state_dict")
    rest["optimizer_states"] = [
        _by_number(_below(flat, f"optimizer_{number}"), groups) for number, groups in enumerate(rest.pop(GROUPS))
    ]
    return rest


def _below(flat: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in flat.items() if key.startswith(f"{name}.")}


def _by_number(state: Mapping[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Turn an optimizer state keyed by parameter name into one keyed by parameter number, as torch's optimizers use."""
    names = [name for group in groups for name in group["params"]]
    return {
        "state": {number: _below(state, name) for number, name in enumerate(names)},
        "param_groups": [{**group, "params": [names.index(name) for name in group["params"]]} for group in groups],
    }
