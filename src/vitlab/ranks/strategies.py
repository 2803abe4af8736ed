"""How several processes train one model: torch.distributed's engines by Lightning's strategies."""

from datetime import timedelta

from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard


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

    A checkpoint is the same file as without it: the first process puts it together in its host memory.

    Args:
        timeout_seconds: A process that waits longer for the others ends the run.
        process_group_backend: "nccl", "gloo"; None takes the device's.
    """

    def __init__(self, *, timeout_seconds: float, process_group_backend: str | None) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=timeout_seconds),
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # Lightning's own "auto" is one a machine
        super().setup_environment()


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Divides a network's parameters among the processes of a mesh, in place: each block of a list or sequence of
    blocks together, so that its weights are gathered for it alone, and what is left together."""
    for part in network.children():
        if isinstance(part, nn.ModuleList | nn.Sequential):
            for block in part:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
