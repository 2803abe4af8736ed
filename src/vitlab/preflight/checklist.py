"""Run all preflight checks in order."""

import copy
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitlab.preflight import cost_checks, data_checks, learning_checks, network_checks
from vitlab.preflight.check_result import CheckResult, Preflight, Status, failed, skipped
from vitlab.preflight.context import CheckContext, full_float32_precision, rng_state_restored

log = logging.getLogger(__name__)

OUT_OF_MEMORY = (
    "lower data.batch_size and raise trainer.accumulate_grad_batches by the same factor: the training stays the same. "
    "The checks need memory for a copy of the model"
)


def run_preflight(context: CheckContext, folder: Path) -> Preflight:
    """Run all checks; `folder` will hold the checkpoints. Weights and random number generators do not change."""
    started = time.perf_counter()
    with rng_state_restored(context.device):
        findings = Checklist(context, folder).run_all()
    return Preflight(findings, str(context.device), str(context.trainer.precision), time.perf_counter() - started)


class Checklist:
    """Run checks one by one and collect their results."""

    def __init__(self, context: CheckContext, folder: Path) -> None:
        self.context = context
        self.folder = folder
        self.findings: list[CheckResult] = []

    def run(self, name: str, check: Callable[..., CheckResult | Iterable[CheckResult]], *arguments: Any) -> bool:
        """Run `check(context, *arguments)` and record its results; returns whether none failed or was skipped.

        A check that raises an error is skipped: it must not stop a run whose model it was not written for.
        """
        first = len(self.findings)
        try:
            results = check(self.context, *arguments)
            for result in [results] if isinstance(results, CheckResult) else results:
                self.findings.append(replace(result, check=result.check or name))
        except torch.OutOfMemoryError as error:
            log.info("preflight: out of memory in %s", name, exc_info=error)
            self.findings.append(replace(failed("the GPU runs out of memory", OUT_OF_MEMORY), check=name))
        except Exception as error:
            log.info("preflight: %s raised an error", name, exc_info=error)
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            self.findings.append(skipped(f"the check itself failed ({reason[:200]}); see run.log", name))
        return all(finding.status in (Status.OK, Status.WARNING) for finding in self.findings[first:])

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
            self.findings.append(skipped("not checked, because the images or labels are wrong", "model"))
        elif self.run("logits", network_checks.logits):
            self.run("initial loss", learning_checks.initial_loss)
            self.run("model", self._check_trained_copy)
            self.run("recipe", self._check_recipe)
        return self.findings

    def _check_trained_copy(self, context: CheckContext) -> Iterable[CheckResult]:
        trial = learning_checks.overfit(context)
        self.run("overfits one batch", learning_checks.overfits_one_batch, trial)
        self.run("gradients", learning_checks.gradients, trial)
        if trial.broken:
            return []
        rounded = trial.classifier.network.eval()
        network = copy.deepcopy(rounded).float()
        with full_float32_precision():
            self.run("images are independent", network_checks.images_are_independent, network)
            if self.run("depends on input", network_checks.depends_on_input, network):
                self.run("uses positions", network_checks.uses_positions, network)
                # This compares with the differences between images.
                self.run("precision", network_checks.precision, rounded, network)
        self.run("compute", cost_checks.compute, network)
        return []

    def _check_recipe(self, context: CheckContext) -> Iterable[CheckResult]:
        classifier = context.copy()
        optimizer = classifier.make_optimizer()
        self.run("optimizer", learning_checks.optimizer_groups, classifier, optimizer)
        started = time.perf_counter()
        yield from learning_checks.recipe(context, classifier, optimizer)
        seconds_per_image = (time.perf_counter() - started) / (learning_checks.STEPS * learning_checks.IMAGES)
        self.run("time", cost_checks.time_and_memory, classifier, optimizer, seconds_per_image)
        self.run("disk", cost_checks.disk, classifier, optimizer, self.folder)
