"""Rank and world size of this process, known before torch is imported."""

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from vitlab.errors import UserError

PR_SET_PDEATHSIG = 1  # man prctl


@dataclass(frozen=True)
class Process:
    """One of the processes that train one model.

    Attributes:
        rank: Global rank, from 0.
        world_size: Number of processes.
        nodes: Number of machines.
        started_by: "torchrun", "srun", "Lightning" (a rank that rank 0 started) or "user".
    """

    rank: int = 0
    world_size: int = 1
    nodes: int = 1
    started_by: str = "user"

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0

    @property
    def launched_together(self) -> bool:
        """Whether torchrun or srun started this process together with others."""
        return self.world_size > 1 and self.started_by in ("torchrun", "srun")

    def log_file(self, run: Path) -> Path:
        """The log of this process: `run.log` for rank 0, `ranks/rank_<n>.log` for the others."""
        return run / "run.log" if self.is_rank_zero else run / "ranks" / f"rank_{self.rank}.log"


def this_process() -> Process:
    """Read the environment variables that torchrun (`torch.distributed.run`, "Environment Variables"), SLURM's srun
    (`man srun`, "OUTPUT ENVIRONMENT VARIABLES") or Lightning's launcher set."""
    known = os.environ
    if "TORCHELASTIC_RUN_ID" in known:
        return Process(int(known["RANK"]), int(known["WORLD_SIZE"]), int(known["GROUP_WORLD_SIZE"]), "torchrun")
    if "LOCAL_RANK" in known and "WORLD_SIZE" in known:
        # Lightning's launcher sets them in rank 0 too, when it starts the others.
        rank = int(known["LOCAL_RANK"])
        return Process(rank, int(known["WORLD_SIZE"]), 1, "Lightning" if rank else "user")
    if "SLURM_PROCID" in known and known.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        tasks = int(known.get("SLURM_NTASKS", 1))
        if tasks > 1:  # in a job with one task, rank 0 starts the other processes itself
            return Process(int(known["SLURM_PROCID"]), tasks, int(known.get("SLURM_NNODES", 1)), "srun")
    return Process()


def check_start(*, several: bool) -> None:
    """Refuse a start that would wait for processes that nobody starts, or would do the same work several times.

    Args:
        several: Whether this command may run as several processes.

    Raises:
        UserError: it names what started this process, and the right way to start it.
    """
    me, known = this_process(), os.environ
    started = me.started_by == "torchrun" or "SLURM_STEP_ID" in known  # set by srun, not by the job around it
    if me.launched_together and started and not several:
        raise UserError(f"this command runs as one process, but {me.started_by} started {me.world_size}")
    if me.launched_together and me.started_by == "srun" and several:
        if not started:
            raise UserError(
                f"this job has {me.world_size} tasks, but nothing starts them: use srun python train.py ..."
            )
        if "SLURM_NTASKS_PER_NODE" not in known:
            raise UserError("the number of processes per machine is unknown: use sbatch --ntasks-per-node=...")
    if "NODE_RANK" in known and "LOCAL_RANK" not in known:
        raise UserError("NODE_RANK is set by hand: start processes on several machines with torchrun or srun")


def die_with_parent(number: int) -> None:
    """Make Linux send this process the signal `number` when its parent ends, for whatever reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
