"""Run all preflight checks in order, and report their results."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng

from vitlab.errors import first_line
from vitlab.preflight import cost_checks, data_checks, learning_checks, network_checks
from vitlab.preflight.context import CheckContext, CheckResult, Status, failed, skipped

log = logging.getLogger(__name__)


Check = Callable[[CheckContext], CheckResult | None]

# Each check's name, its function, and the checks that must have passed before it runs. "recipe" and "model" train the
# copies that later checks look at; they report nothing, unless that fails.
CHECKS: tuple[tuple[str, Check, set[str]], ...] = (
    ("trainable parameters", learning_checks.trainable_parameters, set()),
    ("normalisation", data_checks.normalisation, set()),
    ("augmentation", data_checks.augmentation, set()),
    ("splits are disjoint", data_checks.splits_are_disjoint, set()),
    ("labels", data_checks.labels, set()),
    ("labels are learnable", data_checks.labels_are_learnable, {"labels"}),
    ("mixing", data_checks.mixing, {"labels"}),
    ("logits", network_checks.logits, {"augmentation", "labels"}),
    ("recipe", CheckContext.train_by_recipe, {"logits"}),
    ("initial loss", learning_checks.initial_loss, {"recipe"}),
    ("model", CheckContext.train_on_one_batch, {"logits"}),
    ("overfits one batch", learning_checks.overfits_one_batch, {"model"}),
    ("gradients", learning_checks.gradients, {"model"}),
    ("trained model", CheckContext.keep_trained_network, {"model"}),
    ("images are independent", network_checks.images_are_independent, {"trained model"}),
    ("depends on input", network_checks.depends_on_input, {"trained model"}),
    ("uses positions", network_checks.uses_positions, {"depends on input"}),
    ("precision", network_checks.precision, {"depends on input"}),  # compares with differences between images
    ("compute", cost_checks.compute, {"trained model"}),
    ("optimizer", learning_checks.optimizer_groups, {"recipe"}),
    ("clipping", learning_checks.clipping, {"recipe"}),
    ("learning rate", learning_checks.learning_rate, {"recipe"}),
    ("time", cost_checks.speed, {"recipe"}),
    ("memory", cost_checks.memory, {"time"}),
    ("disk", cost_checks.disk, {"recipe"}),
)


@dataclass(frozen=True)
class Preflight:
    """Results of all checks, with the device and precision they ran in and how long they took."""

    findings: list[CheckResult]
    device: str
    precision: str
    seconds: float

    @property
    def failures(self) -> list[CheckResult]:
        return [finding for finding in self.findings if finding.status is Status.FAILED]

    @property
    def counts(self) -> Counter[Status]:
        """The number of checks by status."""
        return Counter(finding.status for finding in self.findings)

    def as_markdown(self) -> str:
        """A table for TensorBoard and other loggers."""
        counts = ", ".join(f"{self.counts[status]} {status}" for status in Status if self.counts[status])
        verdict = f"{counts} in {self.seconds:.1f} s ({self.device}, {self.precision})"
        found = [f"{f.figure} {f.meaning}".replace("|", "\\|") for f in self.findings]
        rows = [f"| {f.status} | {f.check} | {text} |" for f, text in zip(self.findings, found, strict=True)]
        return "\n".join([f"{verdict}\n", "| | check | found |", "|---|---|---|", *rows])

    def as_data(self) -> dict[str, Any]:
        """The content of preflight.json."""
        return {
            "passed": not self.failures,
            "device": self.device,
            "precision": self.precision,
            "seconds": round(self.seconds, 2),
            "checks": [{"check": finding.check, **asdict(finding)} for finding in self.findings],
        }


def run_preflight(context: CheckContext) -> Preflight:
    """Run all checks. Weights and random number generators do not change."""
    started, device = time.perf_counter(), context.device
    mps_state = torch.mps.get_rng_state() if device.type == "mps" else None
    with isolate_rng(include_cuda=False), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        findings = list(_findings(context))
    if mps_state is not None:
        torch.mps.set_rng_state(mps_state)
    return Preflight(findings, str(device), str(context.trainer.precision), time.perf_counter() - started)


def _findings(context: CheckContext) -> Iterator[CheckResult]:
    passed: set[str] = set()
    for name, check, needed in CHECKS:
        if passed.issuperset(needed):
            result = _run(name, check, context)
            if result is None or result.status in (Status.OK, Status.WARNING):
                passed.add(name)
            if result is not None:
                yield replace(result, check=name)
        elif name == "logits":
            yield skipped("not checked, because the images or labels are wrong", check="model")


def _run(name: str, check: Check, context: CheckContext) -> CheckResult | None:
    """Run a check; if it raises an error it is skipped: it must not stop a run whose model it was not written for."""
    try:
        return check(context)
    except torch.OutOfMemoryError as error:
        log.info("preflight: out of memory in %s", name, exc_info=error)
        return failed(
            "the GPU runs out of memory",
            "lower data.batch_size and raise trainer.accumulate_grad_batches by the same factor: the training stays "
            "the same. The checks need memory for a copy of the model",
        )
    except Exception as error:
        log.info("preflight: %s raised an error", name, exc_info=error)
        return skipped(f"the check itself failed ({first_line(error)[:200]}); see run.log")
