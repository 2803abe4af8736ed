"""Rank and world size, decisions of rank 0, and repeated jobs, without torch."""

import os
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from vitlab.errors import UserError
from vitlab.system import WINDOWS

WAIT = timedelta(minutes=10)  # until every process has imported what it needs; network file systems are slow
ANSWER = "VITLAB_AGREED_"  # prefix of the variables through which processes started by Lightning get the answers


@dataclass(frozen=True)
class Process:
    """One of the processes that train one model."""

    rank: int = 0
    world_size: int = 1
    nodes: int = 1
    started_by: str = "user"  # or "torchrun", "srun", "Lightning" (a rank that rank 0 started)

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
    """Refuse a start that would wait for processes that nobody starts, or do the same work several times, unless the
    command may run as `several` processes."""
    me, known = this_process(), os.environ
    together = me.started_by if me.launched_together else None
    started = together == "torchrun" or "SLURM_STEP_ID" in known  # set by srun, not by the job around it
    if together and started and not several:
        raise UserError(f"this command runs as one process, but {together} started {me.world_size}")
    if together == "srun" and several and not started:
        raise UserError(f"this job has {me.world_size} tasks, but nothing starts them: use srun python train.py ...")
    if together == "srun" and several and "SLURM_NTASKS_PER_NODE" not in known:
        raise UserError("the number of processes per machine is unknown: use sbatch --ntasks-per-node=...")
    if "NODE_RANK" in known and "LOCAL_RANK" not in known:
        raise UserError("NODE_RANK is set by hand: start processes on several machines with torchrun or srun")


def broadcast_from_rank0(what: str, decide: Callable[[], str], wait: timedelta = WAIT) -> str:
    """Return on every rank what `decide` answers on rank 0; `what` names the decision. UserError if rank 0 cannot be
    reached, or ended before it decided."""
    me = this_process()
    if me.started_by == "Lightning":  # rank 0 had decided before it started this process
        if ANSWER + what not in os.environ:
            raise UserError("LOCAL_RANK and WORLD_SIZE are set, but not by torchrun, srun or trainer.devices")
        return os.environ[ANSWER + what]
    if me.launched_together and not me.is_rank_zero:
        return _receive(me, what, wait)
    answer = os.environ[ANSWER + what] = decide()
    if me.launched_together:
        store = _store(me)
        store.set(what, answer)
        store.wait([f"{what} received by {rank}" for rank in range(1, me.world_size)], wait)
    return answer


def _receive(me: Process, what: str, wait: timedelta) -> str:
    try:
        store = _store(me)
        store.wait([what], wait)
        answer = str(store.get(what).decode())
        store.set(f"{what} received by {me.rank}", "yes")  # rank 0 keeps the store until then
        return answer
    except RuntimeError as error:  # the errors of torch.distributed are subclasses
        raise UserError(
            f"process {me.rank} of {me.world_size} cannot reach process 0 at "
            f"{os.environ['MASTER_ADDR']}: see the output of process 0"
        ) from error


@cache  # the store must live as long as the process
def _store(me: Process) -> Any:
    from torch.distributed import PrefixStore, TCPStore

    if me.started_by == "srun":
        from pytorch_lightning.plugins.environments import SLURMEnvironment

        cluster = SLURMEnvironment(auto_requeue=False)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = cluster.main_address, str(cluster.main_port)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun serves a store for its processes. Otherwise rank 0 serves one, on the port next to that of
    # torch.distributed's own store.
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    port += 0 if served else 1
    options: Any = {"timeout": WAIT, "wait_for_workers": False, "use_libuv": not WINDOWS}  # its builds lack that
    try:
        store = TCPStore(address, port, is_master=me.is_rank_zero and not served, **options)
    except RuntimeError as error:
        if not me.is_rank_zero:
            raise
        raise UserError(f"port {port} of {address} cannot be used: set another MASTER_PORT=...") from error
    attempt = [os.environ.get(name, "") for name in ("SLURM_STEP_ID", "TORCHELASTIC_RESTART_COUNT")]
    return PrefixStore(f"vitlab {'.'.join(attempt)}", store)


# SLURM, for a requeued job, and torchrun, for a restart, run the same command again and count the restarts (`man
# sbatch`, "OUTPUT ENVIRONMENT VARIABLES"; `torch.distributed.run`, "Environment Variables").


def job() -> str | None:
    """Identify the job whose restarts run the same command: the SLURM job id, else the torchrun process, else None."""
    if "TORCHELASTIC_RUN_ID" in os.environ and _slurm_job() is None:
        # The run id alone is "none" or "1" in most commands.
        return f"torchrun {os.environ['TORCHELASTIC_RUN_ID']}, process {os.getppid()} of {socket.gethostname()}"
    return _slurm_job()


def is_requeued() -> bool:
    """Whether SLURM or torchrun has run the command of this process before."""
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("SLURM_RESTART_COUNT", "0")
    return job() is not None and restarts != ("0", "0")


def requeue() -> None:
    """Put this job back into the queue; `scontrol` prints a message if it was submitted with --no-requeue."""
    number = _slurm_job()
    if number is not None:
        with suppress(OSError):  # a container has no scontrol
            subprocess.run(["scontrol", "requeue", number], check=False)


def _slurm_job() -> str | None:
    """The job id as `scontrol` takes it, also for a job of an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID")
