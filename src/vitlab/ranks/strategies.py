"""How several processes train one model: torch.distributed's engines by Lightning's strategies."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from vitlab.runs import shards


class DataParallel(DDPStrategy):
    """Each process has a copy of the model and averages its gradients with the others' (Li et al. 2020, "PyTorch
    Distributed: Experiences on Accelerating Data Parallel Training").

    Args:
        timeout_seconds: A process that waits longer for the others ends the run.
        find_unused_parameters: Look in each step which parameters got a gradient; for networks that leave some out.
        static_graph: Promise that each step uses the same parameters in the same order.
        bucket_cap_mb: Gradients are sent in pieces of so many MiB, each as soon as it is there.
        gradient_as_bucket_view: The gradients lie in the pieces that are sent, not beside them.
        process_group_backend: "nccl", "gloo"; None takes the device's.
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
            process_group_backend=process_group_backend,
            find_unused_parameters=find_unused_parameters,
            static_graph=static_graph,
            bucket_cap_mb=bucket_cap_mb,
            gradient_as_bucket_view=gradient_as_bucket_view,
        )


class FullySharded(ModelParallelStrategy):
    """Each process keeps a share of the weights, gradients and optimizer state, and gathers the weights of a block when
    it comes to it (Rajbhandari et al. 2020, "ZeRO"; torch's `fully_shard`, FSDP2).

    Args:
        timeout_seconds: A process that waits longer for the others ends the run.
        sharded_checkpoints: Each process writes its share, into a folder; else the first one puts all together in its
            host memory and writes a file. Either is read with any number of processes.
        process_group_backend: "nccl", "gloo"; None takes the device's.
    """

    def __init__(self, *, timeout_seconds: float, sharded_checkpoints: bool, process_group_backend: str | None) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=sharded_checkpoints,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=timeout_seconds),
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # Lightning's own "auto" is one a machine
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = Path(filepath)
        folder = path.with_name(self.broadcast(f"{path.name}.{time.time_ns()}"))
        folder.mkdir(parents=True, exist_ok=True)
        optimizers = checkpoint.pop("optimizer_states", [])
        shards.write_shards(
            {
                "state_dict": checkpoint.pop("state_dict"),
                **{f"optimizer_{number}": state["state"] for number, state in enumerate(optimizers)},
            },
            folder,
        )
        if self.global_rank == 0:
            groups = [state["param_groups"] for state in optimizers]
            shards.put_in_place({**checkpoint, shards.GROUPS: groups}, folder, path)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        folder = Path(self.broadcast(str(checkpoint_path)))
        if not folder.is_dir():
            return super().load_checkpoint(checkpoint_path, weights_only)
        assert self.model is not None
        rest = shards.read_rest(folder)
        states: dict[str, Any] = {
            f"optimizer_{n}": get_optimizer_state_dict(self.model, o) for n, o in enumerate(self.optimizers)
        }
        tensors = {"state_dict": get_model_state_dict(self.model)}
        tensors |= {name: state["state"] for name, state in states.items()}
        shards.read_shards(tensors, folder)
        set_model_state_dict(self.model, tensors["state_dict"])
        for number, optimizer in enumerate(self.optimizers):
            state = {"state": tensors[f"optimizer_{number}"], "param_groups": rest[shards.GROUPS][number]}
            set_optimizer_state_dict(self.model, optimizer, state)
        return rest


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Divides a network's parameters among the processes of a mesh, in place: each block of a list or sequence of
    blocks together, so that its weights are gathered for it alone, and what is left together."""
    for part in network.children():
        if isinstance(part, nn.ModuleList | nn.Sequential):
            for block in part:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
