"""Data parallel (DDP) and fully sharded (FSDP2) training, as Lightning strategies."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from pytorch_lightning.plugins import environments
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint import state_dict as dcp_state
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from vitlab.compat import shard_over_all_processes
from vitlab.distributed import sharded_checkpoint
from vitlab.distributed.process import this_process
from vitlab.errors import UserError
from vitlab.system import WINDOWS


class DataParallel(DDPStrategy):
    """Each process has a copy of the model; gradients are averaged over all processes (Li et al. 2020, "PyTorch
    Distributed: Experiences on Accelerating Data Parallel Training").

    Args:
        timeout_seconds: End the run if a process waits longer than this for the others.
        find_unused_parameters: Look in every step for parameters without a gradient; for networks that skip some.
        static_graph: Promise that every step uses the same parameters in the same order.
        bucket_cap_mb: Send gradients in buckets of this many MiB, each as soon as it is complete.
        gradient_as_bucket_view: Store gradients in the buckets themselves, which saves one copy.
        process_group_backend: "nccl" or "gloo"; None: the default of the device.
    """

    def __init__(
        self,
        *,
        timeout_seconds: float,
        find_unused_parameters: bool,
        static_graph: bool,
        bucket_cap_mb: int,
        gradient_as_bucket_view: bool,
        process_group_backend: str | None,
    ) -> None:
        super().__init__(
            timeout=timedelta(seconds=timeout_seconds),
            process_group_backend=process_group_backend or ("gloo" if WINDOWS else None),  # it has no NCCL
            find_unused_parameters=find_unused_parameters,
            static_graph=static_graph,
            bucket_cap_mb=bucket_cap_mb,
            gradient_as_bucket_view=gradient_as_bucket_view,
        )


class FullySharded(ModelParallelStrategy):
    """Each process keeps a shard of weights, gradients and optimizer state, and gathers the weights of one block at a
    time (Rajbhandari et al. 2020, "ZeRO"; torch's `fully_shard`, FSDP2).

    Args:
        timeout_seconds: End the run if a process waits longer than this for the others.
        sharded_checkpoints: Each process writes its shard into a folder; otherwise rank 0 gathers everything in its
            host memory and writes one file. Both can be read with any number of processes.
        process_group_backend: "nccl" or "gloo"; None: the default of the device.
    """

    def __init__(self, *, timeout_seconds: float, sharded_checkpoints: bool, process_group_backend: str | None) -> None:
        if sharded_checkpoints and WINDOWS:
            raise UserError(
                "trainer.strategy.sharded_checkpoints=true: Windows can't replace the link last.ckpt; take false"
            )
        self.sharded_checkpoints = sharded_checkpoints
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=sharded_checkpoints,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=timeout_seconds),
        )

    def setup_environment(self) -> None:
        shard_over_all_processes(self)
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        if not self.sharded_checkpoints:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = Path(filepath)
        folder = path.with_name(self.broadcast(f"{path.name}.{time.time_ns()}"))
        folder.mkdir(parents=True, exist_ok=True)
        optimizers = checkpoint.pop("optimizer_states", [])
        states = {f"optimizer_{number}": state["state"] for number, state in enumerate(optimizers)}
        sharded_checkpoint.write_shards({"state_dict": checkpoint.pop("state_dict"), **states}, folder)
        if self.global_rank == 0:
            groups = [state["param_groups"] for state in optimizers]
            sharded_checkpoint.put_in_place({**checkpoint, sharded_checkpoint.GROUPS: groups}, folder, path)
        self.barrier()

    def remove_checkpoint(self, filepath: Any) -> None:
        path = Path(filepath)
        if not path.is_symlink():
            super().remove_checkpoint(filepath)
        elif self.global_rank == 0:  # Lightning would leave the folder
            path.unlink()
            sharded_checkpoint.remove_folders(path)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        folder = Path(self.broadcast(str(checkpoint_path)))
        if not folder.is_dir():
            return super().load_checkpoint(checkpoint_path, weights_only)
        assert self.model is not None
        assert self.lightning_module is not None
        rest, known = sharded_checkpoint.read_rest(folder), sharded_checkpoint.read_index(folder)
        fits = self.lightning_module.trainer.state.fn == "fit"  # in `test` the optimizers of `fit` still exist
        optimizers = dict(enumerate(self.optimizers)) if fits else {}
        tensors: dict[str, Any] = {"state_dict": dcp_state.get_model_state_dict(self.model)}
        for number, optimizer in optimizers.items():
            state: Any = dcp_state.get_optimizer_state_dict(self.model, optimizer)["state"]
            # Parameters that were frozen when the checkpoint was written have no state.
            there = [name for name in state if any(key.startswith(f"optimizer_{number}.{name}.") for key in known)]
            tensors[f"optimizer_{number}"] = {name: state[name] for name in there}
        sharded_checkpoint.read_shards(tensors, folder)
        dcp_state.set_model_state_dict(self.model, tensors["state_dict"])
        options = dcp_state.StateDictOptions(strict=False)
        for number, optimizer in optimizers.items():
            found = tensors[f"optimizer_{number}"]
            state = {"state": found, "param_groups": rest[sharded_checkpoint.GROUPS][number]}
            dcp_state.set_optimizer_state_dict(self.model, optimizer, state, options=options)
            for name, parameter in self.model.named_parameters():
                if name not in found:  # get_optimizer_state_dict has made a state for it
                    optimizer.state.pop(parameter, None)
        return rest


def cluster() -> list[environments.ClusterEnvironment]:
    """Tell Lightning what started the processes.

    By itself it takes the tasks of any SLURM job for ranks, and answers SLURM's warning with a checkpoint of its own.
    """
    if this_process().started_by == "torchrun":
        return [environments.TorchElasticEnvironment()]
    if this_process().started_by == "srun":
        return [environments.SLURMEnvironment(auto_requeue=False)]
    return [environments.LightningEnvironment()]


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network's parameters over the processes of a mesh, in place: each block of a `ModuleList` or
    `Sequential` is one unit, whose weights are gathered together; the rest is another."""
    for block in _blocks(network):
        if next(block.parameters(), None) is not None:
            fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.children():
        yield from part if isinstance(part, nn.ModuleList | nn.Sequential) else _blocks(part)
