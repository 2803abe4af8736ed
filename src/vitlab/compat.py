"""Adapt libraries and the system: exits, warnings, private names, memory."""

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import timm.optim.muon
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch import nn
from torch.distributed import DistError

from vitlab.errors import TerminatedError, UserError, file_error
from vitlab.system import peak_process_memory

HARMLESS_WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\).* is deprecated",  # Lightning's use of torch's pytree
    r"The number of training batches .* is smaller than the logging interval",
    r".*`lr_scheduler\.step\(\)` before `optimizer\.step\(\)`",  # Lightning's order of calls in float16
    r"`training_step` returned `None`",  # callbacks.nan.action=skip does so, and counts these steps
    r"Checkpoint directory .* exists and is not empty",
    r"The ``compute`` method of metric \w+ was called before",  # its sums came from a checkpoint
    r"(GPU|MPS) available but not used",  # trainer=cpu asks for that
    r"Precision .* is not supported by the model summary",  # callbacks.<name> of Lightning's: only a size is off
    r"Detected pickle protocol",  # of a file that is then refused or read
    r"No positive samples in targets",  # AUROC of a class without images, which its mean leaves out
    r"Glyph \d+ .* missing from font",  # in a file name on a figure
)
LIGHTNING_LOGGERS = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric")
SMALL_BATCH = 16  # images


# Exits and messages


@contextmanager
def translate_lightning_exits(trainer: pl.Trainer) -> Iterator[None]:
    """Turn Lightning's ways to end fit, test and validate into exceptions.

    KeyboardInterrupt after Ctrl-C and TerminatedError after SIGTERM: by itself Lightning ends the process with status 1
    and 0. UserError if the trainer's settings contradict each other, the disk is full or read-only, or a port is taken.
    """
    show = threading.excepthook
    # TensorBoard writes in a thread; the full disk is reported once, by the run itself.
    threading.excepthook = lambda found: None if file_error(found.exc_value) else show(found)
    try:
        yield
    except SIGTERMException:
        raise TerminatedError from None
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # not a sys.exit in the user's own code
            raise KeyboardInterrupt from None
        raise
    except OSError as error:
        if not (reason := file_error(error)):
            raise
        raise UserError(f"{reason}; everything saved before is intact") from error
    except DistError as error:
        if "listen" not in str(error):
            raise
        raise UserError(f"port {os.environ.get('MASTER_PORT')} is taken: set another MASTER_PORT=...") from error
    except RuntimeError as error:
        if not str(error).startswith("Early stopping conditioned on metric"):  # that is not logged
            raise
        raise UserError(f"callbacks.early_stopping: {error}") from error
    except ValueError as error:
        if "`val_check_interval`" not in str(error):
            raise
        raise UserError(
            f"trainer.val_check_interval={trainer.val_check_interval} is more than the {trainer.num_training_batches} "
            "batches of an epoch: take fewer, or trainer.check_val_every_n_epoch=null, which counts across epochs"
        ) from error
    except (MisconfigurationException, ModuleNotFoundError) as error:  # or a package that a callback needs
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    finally:
        threading.excepthook = show


def silence_libraries() -> None:
    """Drop the libraries' messages below warnings, and harmless warnings; others reach the terminal and run.log."""
    for message in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a full disk also stops run.log, which needs no traceback of its own
    for name in LIGHTNING_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()  # their own handlers write to the terminal
        logger.propagate = True
        logger.setLevel(logging.WARNING)


# Private names, each with its reason and the versions for which it was needed


@contextmanager
def own_logging() -> Iterator[None]:
    """Keep the handlers and levels of a program's own logging out of the way, and restore them at the end.

    Only private names tell (Python 3.11 to 3.14) whether warnings are captured, and which handlers exist: by itself
    `logging.config` closes them all.
    """
    loggers = [logging.getLogger(name) for name in (None, "vitlab", *LIGHTNING_LOGGERS)]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    raises, captures = logging.raiseExceptions, logging._warnings_showwarning is not None  # type: ignore[attr-defined]
    known, names = logging._handlerList[:], dict(logging._handlers)  # type: ignore[attr-defined]
    logging._handlerList.clear()  # type: ignore[attr-defined]
    logging.root.handlers.clear()
    try:
        yield
    finally:
        logging.shutdown()  # closes run.log
        logging._handlerList[:] = known  # type: ignore[attr-defined]
        logging._handlers.update(names)  # type: ignore[attr-defined]
        logging.captureWarnings(captures)
        logging.raiseExceptions = raises
        for logger, handlers, level, propagate in before:
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; torch 2.11 to 2.14 tells it only in private functions."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def logged_step(trainer: pl.Trainer) -> int:
    """The step at which Lightning's loggers log next: it also counts steps whose update was skipped (Lightning 2.6)."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


class _WatchedLauncher(_SubprocessScriptLauncher):
    """Start local ranks as Lightning does, and leave watching them to `started`."""

    def __init__(self, theirs: _SubprocessScriptLauncher, started: Callable[[], None]) -> None:
        super().__init__(theirs.cluster_environment, theirs.num_processes, theirs.num_nodes)
        self.started = started

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()  # after this, the environment says that the processes are there
            self.started()
        return super().launch(function, *args, trainer=trainer, **kwargs)


def watch_local_ranks(trainer: pl.Trainer, started: Callable[[], None]) -> None:
    """Call `started` once the trainer has started the other local ranks; Lightning's own observer then stays away.

    Lightning 2.6: its observer kills every process as soon as one fails, without saying which one and why. A launcher
    cannot be given to a strategy in a public way.
    """
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        trainer.strategy._launcher = _WatchedLauncher(launcher, started)


def skip_signal_broadcast(trainer: pl.Trainer) -> None:
    """Keep Lightning 2.6 from asking rank 0 before each batch whether SIGTERM came: on GPUs the host waits for the
    answer (github.com/Lightning-AI/pytorch-lightning issue 21487). LastCheckpoint asks every few steps."""
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = lambda: None


def count_epochs_from_one(trainer: pl.Trainer) -> None:
    """Make Lightning 2.6 log the epoch to its loggers from 1, as all else counts it; it logs the index by itself."""
    connector: Any = trainer._logger_connector
    theirs = connector.log_metrics

    def log_metrics(metrics: Any, step: int | None = None) -> None:
        epoch = trainer.current_epoch + (trainer.state.fn == "fit")  # after training it is the number of epochs
        theirs({**metrics, "epoch": epoch} if metrics else metrics, step)

    connector.log_metrics = log_metrics


def shard_over_all_processes(strategy: ModelParallelStrategy) -> None:
    """Make every process of every machine a shard; to be called before the strategy sets up its environment.

    Lightning 2.6 takes the size in the constructor, before the number of devices is known; its "auto" is per machine.
    """
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes


def is_compiled(network: nn.Module) -> bool:
    """Whether `network.compile()` was called, which no public attribute tells (torch 2.14)."""
    return network._compiled_call_impl is not None


def compile_in_place(module: nn.Module) -> None:
    """Compile a module's calls by torch.compile: a graph for the batches of training, and one for all of evaluation.

    By itself, torch 2.11 to 2.14 compiles further graphs for other sizes of a batch, such as that of the last one. Some
    kernels (of convolutions, or for one image) need another graph for a small batch, which therefore runs eagerly.
    Which size a graph is for can only be told to torch._dynamo, and before the call.
    """
    module.compile()
    eager: Any = module._call_impl
    compiled = module._compiled_call_impl
    assert compiled is not None

    def call(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        dynamo: Any = torch._dynamo
        if torch.is_grad_enabled():
            dynamo.mark_static(x, 0)
        elif len(x) < SMALL_BATCH:
            return eager(x, *args, **kwargs)
        else:
            dynamo.maybe_mark_dynamic(x, 0)
        return compiled(x, *args, **kwargs)

    module._compiled_call_impl = call


def add_summary(writer: Any, summary: Any, step: int | None = None) -> None:
    """Add a Summary to the TensorBoard file of a SummaryWriter; torch 2.14 reopens a closed one only privately."""
    writer._get_file_writer().add_summary(summary, step)


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning 2.6 validates after the current training batch; only its loop knows."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def augmentation_space(transform: Any) -> dict[str, tuple[Callable[[int, int, int], torch.Tensor | None], bool]]:
    """For each operation of torchvision's RandAugment, TrivialAugmentWide or AutoAugment: its magnitudes, a function of
    (bins, height, width), and whether they also have a negative sign (torchvision 0.26 to 0.29)."""
    return transform._AUGMENTATION_SPACE


def autoaugment_policies(transform: Any) -> list[tuple[tuple[str, float, int | None], ...]]:
    """Torchvision's AutoAugment as pairs of (operation, probability, magnitude bin) (torchvision 0.26 to 0.29)."""
    return transform._policies


# One operation on many tensors, by a few kernels: documented in torch's manual ("Foreach operations"), but underscored.
foreach_add_ = torch._foreach_add_
foreach_lerp_ = torch._foreach_lerp_
foreach_mul_ = torch._foreach_mul_


def suits_muon(weight: torch.Tensor) -> bool:
    """Whether timm's Muon updates a weight: not if it is no matrix, or a thin one (timm 1.0.31)."""
    return bool(timm.optim.muon._is_suitable_for_muon(weight))


def muon_coefficients(given: Any) -> list[tuple[float, float, float]]:
    """Coefficients of the Newton-Schulz iteration, by their name in timm's table or as they are (timm 1.0.31)."""
    return timm.optim.muon.resolve_ns_coefficients(given, timm.optim.muon._COEFFICIENTS)


# Devices


def peak_memory(device: torch.device) -> float | None:
    """Peak memory in GiB: of tensors on a CUDA GPU, what Apple's GPU holds now, otherwise of the process (None on
    Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30  # which torch keeps: there is no peak
    return peak_process_memory()


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type in ("cuda", "mps"):
        torch.accelerator.synchronize(device)


def precise_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak on a GPU; that of a process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
