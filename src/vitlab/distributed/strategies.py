"""How several processes train one model: torch.distributed's engines by Lightning's strategies."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from vitlab.distributed import sharded_checkpoint
from vitlab.distributed.process import this_process


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
        sharded_checkpoint.write_shards(
            {
                "state_dict": checkpoint.pop("state_dict"),
                **{f"optimizer_{number}": state["state"] for number, state in enumerate(optimizers)},
            },
            folder,
        )
        if self.global_rank == 0:
            groups = [state["param_groups"] for state in optimizers]
            sharded_checkpoint.put_in_place({**checkpoint, sharded_checkpoint.GROUPS: groups}, folder, path)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        folder = Path(self.broadcast(str(checkpoint_path)))
        if not folder.is_dir():
            return super().load_checkpoint(checkpoint_path, weights_only)
        assert self.model is not None
        assert self.lightning_module is not None
        rest = sharded_checkpoint.read_rest(folder)
        fits = self.lightning_module.trainer.state.fn == "fit"  # after it the optimizers are still there
        optimizers = dict(enumerate(self.optimizers)) if fits else {}
        known = sharded_checkpoint.names(folder)
        tensors: dict[str, Any] = {"state_dict": get_model_state_dict(self.model)}
        for number, optimizer in optimizers.items():
            state: Any = get_optimizer_state_dict(self.model, optimizer)["state"]
            # What was frozen when the checkpoint was written has none.
            there = {name for name in state if any(key.startswith(f"optimizer_{number}.{name}.") for key in known)}
            tensors[f"optimizer_{number}"] = {name: state[name] for name in there}
        sharded_checkpoint.read_shards(tensors, folder)
        set_model_state_dict(self.model, tensors["state_dict"])
        for number, optimizer in optimizers.items():
            found = tensors[f"optimizer_{number}"]
            state = {"state": found, "param_groups": rest[sharded_checkpoint.GROUPS][number]}
            set_optimizer_state_dict(self.model, optimizer, state, options=StateDictOptions(strict=False))
            for name, parameter in self.model.named_parameters():
                if name not in found:  # get_optimizer_state_dict has made one
                    optimizer.state.pop(parameter, None)
        return rest


def cluster() -> list[ClusterEnvironment]:
    """What started the processes, for Lightning, which would take any SLURM job for one whose tasks are the ranks, and
    answer SLURM's warning with another checkpoint than ours."""
    if this_process().started_by == "torchrun":
        return [TorchElasticEnvironment()]
    if this_process().started_by == "srun":
        return [SLURMEnvironment(auto_requeue=False)]
    return [LightningEnvironment()]


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Divides a network's parameters among the processes of a mesh, in place: each block of a list or sequence of
    blocks together, so that its weights are gathered for it alone, and what is left together."""
    for block in _blocks(network):
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.children():
        yield from part if isinstance(part, nn.ModuleList | nn.Sequential) else _blocks(part)
