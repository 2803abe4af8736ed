"""Which of the libraries' messages reach the terminal."""

import logging
import warnings

# Each is said by a library about itself or about a choice that the config makes on purpose.
_HARMLESS_WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\).* is deprecated",  # Lightning's, of torch's pytree
    r"The number of training batches .* is smaller than the logging interval",
    r".*`lr_scheduler\.step\(\)` before `optimizer\.step\(\)`",  # Lightning's order of calls under float16
    r"`training_step` returned `None`",  # callbacks.nan.action=skip counts them
    r"Checkpoint directory .* exists and is not empty",
)


def quiet_libraries() -> None:
    """Sends the libraries' chatter to the run's log alone; warnings, but for the harmless, still reach the terminal."""
    for message in _HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a run.log on a full disk is the least of the worries
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()  # a handler of their own, which writes to the terminal
        logger.propagate = True
