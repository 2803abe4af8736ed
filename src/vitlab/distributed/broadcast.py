"""Share the decisions of rank 0 before torch.distributed starts."""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

from vitlab.distributed.process import Process, this_process
from vitlab.errors import UserError

WAIT = timedelta(minutes=10)  # until every process has imported what it needs; network file systems are slow
ANSWER = "VITLAB_AGREED_"  # prefix of the variables through which processes started by Lightning get the answers


def broadcast_from_rank0(what: str, decide: Callable[[], str], wait: timedelta = WAIT) -> str:
    """Call `decide` on rank 0 and return its answer on every rank.

    Args:
        what: Name of the decision, the same on every rank.
        decide: Called on rank 0 alone.
        wait: How long the other ranks wait for the answer.

    Raises:
        UserError: rank 0 cannot be reached, or ended before it decided.
    """
    me = this_process()
    if me.started_by == "Lightning":  # rank 0 had decided before it started this process
        return _from_environment(what)
    if me.launched_together and not me.is_rank_zero:
        return _receive(me, what, wait)
    answer = os.environ[ANSWER + what] = decide()
    if me.launched_together:
        store = _store(me)
        store.set(what, answer)
        store.wait([f"{what} received by {rank}" for rank in range(1, me.world_size)], wait)
    return answer


def _from_environment(what: str) -> str:
    try:
        return os.environ[ANSWER + what]
    except KeyError:
        raise UserError("LOCAL_RANK and WORLD_SIZE are set, but not by torchrun, srun or trainer.devices") from None


def _receive(me: Process, what: str, wait: timedelta) -> str:
    try:
        store = _store(me)
        store.wait([what], wait)
        answer = str(store.get(what).decode())
        store.set(f"{what} received by {me.rank}", "yes")
    except RuntimeError as error:  # the errors of torch.distributed are subclasses
        raise UserError(
            f"process {me.rank} of {me.world_size} cannot reach process 0 at "
            f"{os.environ['MASTER_ADDR']}: see the output of process 0"
        ) from error
    return answer


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
    try:
        store = TCPStore(address, port, is_master=me.is_rank_zero and not served, timeout=WAIT, wait_for_workers=False)
    except RuntimeError as error:
        if not me.is_rank_zero:
            raise
        raise UserError(f"port {port} of {address} cannot be used: set another MASTER_PORT=...") from error
    attempt = [os.environ.get(name, "") for name in ("SLURM_STEP_ID", "TORCHELASTIC_RESTART_COUNT")]
    return PrefixStore(f"vitlab {'.'.join(attempt)}", store)
