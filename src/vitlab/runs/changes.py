"""What of a run's config may change when it goes on."""

from collections.abc import Iterator, Mapping
from typing import Any

from vitlab.errors import UserError

SAME_RUN = "the same run, but no longer to the last bit"
OTHER_RANKS = (
    "the same batches, divided among other processes: the same run to rounding, but for dropout, stochastic depth "
    "and patch dropout, which each process draws for itself"
)
# Prefixes of keys, and what a change of them does to the run; None: nothing.
RESUMABLE_KEYS: dict[str, str | None] = {
    "run_dir": None,
    "preflight": None,
    "callbacks.": None,
    "logger": None,
    "logger.": None,
    "checkpoint.last_every_n_epochs": None,
    "checkpoint.every_minutes": None,
    "data.root": None,  # its images are compared
    "data.cache_dir": None,
    "data.url": None,
    "data.md5": None,
    "trainer.max_epochs": "a schedule that knows the length of the run is laid over the new one from here on",
    "trainer.max_steps": "a schedule that knows the length of the run is laid over the new one from here on",
    "trainer.max_time": "a schedule over the time is laid over the new one from here on",
    "trainer.limit_test_batches": None,
    "trainer.log_every_n_steps": None,
    "trainer.enable_progress_bar": None,
    "trainer.enable_model_summary": None,
    "trainer.profiler": None,
    "trainer.detect_anomaly": None,
    "trainer.inference_mode": None,
    "trainer.accelerator": SAME_RUN,
    "trainer.devices": OTHER_RANKS,
    "trainer.num_nodes": OTHER_RANKS,
    "trainer.strategy.timeout_seconds": None,
    "trainer.strategy": SAME_RUN,
    "trainer.strategy.": SAME_RUN,
    "trainer.deterministic": SAME_RUN,
    "trainer.benchmark": SAME_RUN,
    "compile": SAME_RUN,
    "gradient_checkpointing": SAME_RUN,
    "matmul_precision": SAME_RUN,
    "data.eval_batch_size": SAME_RUN,
}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str | None]:
    """Keys that differ between a run's config and the one it is to go on with, and what each does to the run.

    Raises:
        UserError: naming those that may not change.
    """
    old, new = dict(_leaves(before)), dict(_leaves(after))
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    found: dict[str, str | None] = {}
    refused = []
    for key in changed:
        prefix = next((p for p in RESUMABLE_KEYS if key == p or (p.endswith(".") and key.startswith(p))), None)
        if prefix is None:
            refused.append(f"{key}={new.get(key)} (the run has {old.get(key)})")
        else:
            found[key] = RESUMABLE_KEYS[prefix]
    if refused:
        raise UserError(
            f"a run goes on with the config it began with, which differs in {', '.join(refused)}; "
            "init_from=<run> starts a new run from its weights"
        )
    return found


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node
