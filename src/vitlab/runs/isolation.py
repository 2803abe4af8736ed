"""Leave a process as it was after a training inside of it, as in a notebook."""

import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import VersionBase

from vitlab.system import stop_signals


@contextmanager
def restored_process() -> Iterator[None]:
    """Restore at the end arguments, environment, signal handlers, warning filters, and a Hydra of the user's own, which
    is out of the way until then; also after an exception."""
    program = sys.modules["__main__"]
    arguments, environment, spec = sys.argv[:], dict(os.environ), program.__spec__
    handlers = {number: signal.getsignal(number) for number in stop_signals()}
    base, hydra, config = VersionBase.instance().getbase(), GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    try:
        with warnings.catch_warnings():
            yield
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra, config
        VersionBase.instance().version_base = base
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number, handler in handlers.items():
                if handler is not None:  # None: not set by Python
                    signal.signal(number, handler)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        sys.argv[:], program.__spec__ = arguments, spec


@contextmanager
def restored_libraries() -> Iterator[None]:
    """Restore at the end logging, random number generators and settings of torch, and end a process group of torch's;
    imports torch."""
    python = random.getstate()  # before imports, some of which draw numbers

    import numpy as np
    import torch
    from torch import distributed
    from torch.backends import cudnn

    from vitlab.compat import own_logging

    precision, benchmark = torch.get_float32_matmul_precision(), cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    numpy = np.random.get_state()
    has_group = distributed.is_available() and distributed.is_initialized()
    try:
        with own_logging(), torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        if distributed.is_available() and distributed.is_initialized() and not has_group:
            distributed.destroy_process_group()
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        cudnn.benchmark = benchmark
