"""How several processes train one model: torch.distributed's engines by Lightning's strategies."""

from datetime import timedelta

from pytorch_lightning.strategies import DDPStrategy


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
