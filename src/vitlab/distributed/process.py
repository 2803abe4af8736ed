"""Which of a run's processes this one is, by what started it, before torch is imported."""

import os
from dataclasses import dataclass
from pathlib import Path

from vitlab.errors import UserError


@dataclass(frozen=True)
class Process:
    """One of the processes that train one model.

    Attributes:
        rank: Its number among them all, from 0.
        ranks: How many there are.
        nodes: On how many machines.
        started_by: "torchrun", "srun", "Lightning" (beside the first process, which the user started), or "user".
    """

    rank: int = 0
    ranks: int = 1
    nodes: int = 1
    started_by: str = "user"

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0

    @property
    def has_peers(self) -> bool:
        """Whether something else than this project's first process started it beside others."""
        return self.ranks > 1 and self.started_by in ("torchrun", "srun")

    def log_file(self, run: Path) -> Path:
        """Where it writes its log: the first one's is the run's."""
        return run / "run.log" if self.is_rank_zero else run / "ranks" / f"rank_{self.rank}.log"


def check_start(*, several: bool) -> None:
    """Refuses what would wait for processes that nobody starts, or do the same thing several times.

    Args:
        several: Whether this command can be several processes.

    Raises:
        UserError: naming what was started, and how it is done.
    """
    me, known = this_process(), os.environ
    started = me.started_by == "torchrun" or "SLURM_STEP_ID" in known  # by srun, not just within its job
    if me.has_peers and started and not several:
        raise UserError(f"this command is one process, but {me.started_by} started {me.ranks}")
    if me.has_peers and me.started_by == "srun" and several:
        if not started:
            raise UserError(f"this job has {me.ranks} tasks, and nothing starts them: srun python train.py ...")
        if "SLURM_NTASKS_PER_NODE" not in known:
            raise UserError("the number of processes a machine is not said: sbatch --ntasks-per-node=...")
    if "NODE_RANK" in known and "LOCAL_RANK" not in known:
        raise UserError("NODE_RANK is set by hand: torchrun or srun start processes on several machines")


def this_process() -> Process:
    """As torchrun (`torch.distributed.run`, "Environment Variables"), SLURM's srun (`man srun`, "OUTPUT ENVIRONMENT
    VARIABLES") or Lightning's launcher have told it by the environment."""
    known = os.environ
    if "TORCHELASTIC_RUN_ID" in known:
        return Process(int(known["RANK"]), int(known["WORLD_SIZE"]), int(known["GROUP_WORLD_SIZE"]), "torchrun")
    if "LOCAL_RANK" in known and "WORLD_SIZE" in known:
        # Lightning's launcher sets them in the first process too, when it starts the others.
        rank = int(known["LOCAL_RANK"])
        return Process(rank, int(known["WORLD_SIZE"]), 1, "Lightning" if rank else "user")
    if "SLURM_PROCID" in known and known.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        tasks = int(known.get("SLURM_NTASKS", 1))
        if tasks > 1:  # a job of one task starts processes itself, if any
            return Process(int(known["SLURM_PROCID"]), tasks, int(known.get("SLURM_NNODES", 1)), "srun")
    return Process()
