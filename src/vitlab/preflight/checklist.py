"""Run all preflight checks in order, and report their results."""

import copy
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng

from vitlab.errors import first_line
from vitlab.preflight import cost_checks, data_checks, learning_checks, network_checks
from vitlab.preflight.context import CheckContext, CheckResult, Status, failed, skipped

log = logging.getLogger(__name__)


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


def run_preflight(context: CheckContext, folder: Path) -> Preflight:
    """Run all checks; `folder` will hold the checkpoints. Weights and random number generators do not change."""
    started, device = time.perf_counter(), context.device
    mps_state = torch.mps.get_rng_state() if device.type == "mps" else None
    with isolate_rng(include_cuda=False), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        findings = Checklist(context, folder).run_all()
    if mps_state is not None:
        torch.mps.set_rng_state(mps_state)
    return Preflight(findings, str(device), str(context.trainer.precision), time.perf_counter() - started)


class Checklist:
    """Run checks one by one and collect their results."""

    def __init__(self, context: CheckContext, folder: Path) -> None:
        self.context = context
        self.folder = folder
        self.findings: list[CheckResult] = []

    def run(self, name: str, check: Callable[..., CheckResult | None], *arguments: Any) -> bool:
        """Run `check(context, *arguments)` and record its result, if any; returns whether it is ok or a warning.

        A check that raises an error is skipped: it must not stop a run whose model it was not written for.
        """
        try:
            result = check(self.context, *arguments)
        except torch.OutOfMemoryError as error:
            log.info("preflight: out of memory in %s", name, exc_info=error)
            result = failed(
                "the GPU runs out of memory",
                "lower data.batch_size and raise trainer.accumulate_grad_batches by the same factor: the training "
                "stays the same. The checks need memory for a copy of the model",
            )
        except Exception as error:
            log.info("preflight: %s raised an error", name, exc_info=error)
            result = skipped(f"the check itself failed ({first_line(error)[:200]}); see run.log")
        if result is not None:
            self.findings.append(replace(result, check=name))
        return result is None or result.status in (Status.OK, Status.WARNING)

    def run_all(self) -> list[CheckResult]:
        self.run("trainable parameters", learning_checks.trainable_parameters)
        self.run("normalisation", data_checks.normalisation)
        images_ok = self.run("augmentation", data_checks.augmentation)
        self.run("splits are disjoint", data_checks.splits_are_disjoint)
        labels_ok = self.run("labels", data_checks.labels)
        if labels_ok:
            self.run("labels are learnable", data_checks.labels_are_learnable)
            self.run("mixing", data_checks.mixing)
        if not (images_ok and labels_ok):
            self.run("model", lambda _: skipped("not checked, because the images or labels are wrong"))
        elif self.run("logits", network_checks.logits):
            self.run("initial loss", learning_checks.initial_loss)
            self.run("model", self._check_trained_copy)
            self.run("recipe", self._check_recipe)
        return self.findings

    def _check_trained_copy(self, context: CheckContext) -> None:
        trial = learning_checks.overfit(context)
        self.run("overfits one batch", learning_checks.overfits_one_batch, trial)
        self.run("gradients", learning_checks.gradients, trial)
        if trial.broken:
            return
        rounded = trial.classifier.network.eval()
        network = copy.deepcopy(rounded).float()
        with full_float32_precision():
            self.run("images are independent", network_checks.images_are_independent, network)
            if self.run("depends on input", network_checks.depends_on_input, network):
                self.run("uses positions", network_checks.uses_positions, network)
                # This compares with the differences between images.
                self.run("precision", network_checks.precision, rounded, network)
        self.run("compute", cost_checks.compute, network)

    def _check_recipe(self, context: CheckContext) -> None:
        classifier = context.copy()
        trial = learning_checks.Trial(classifier, classifier.make_optimizer())
        self.run("optimizer", learning_checks.optimizer_groups, trial)
        trial.train(context, context.batch.labels, context.clip)
        self.run("clipping", learning_checks.clipping, trial)
        self.run("learning rate", learning_checks.learning_rate, trial)
        if self.run("time", cost_checks.speed, trial):
            self.run("memory", cost_checks.memory)
        self.run("disk", cost_checks.disk, trial, self.folder)


@contextmanager
def full_float32_precision() -> Iterator[None]:
    """Turn off TF32 in matrix products and convolutions."""
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions
