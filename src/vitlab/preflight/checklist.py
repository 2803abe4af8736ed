"""All checks in their order, and what came of them."""

import copy
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitlab.preflight import cost_checks, data_checks, learning_checks, network_checks
from vitlab.preflight.check_result import CheckResult, Status, failed, skipped
from vitlab.preflight.context import CheckContext, chance_untouched, exact_products

log = logging.getLogger(__name__)

TOO_LARGE = (
    "a smaller data.batch_size with a larger trainer.accumulate_grad_batches trains the same with less; these checks "
    "hold a copy of the network beside the run's"
)


@dataclass(frozen=True)
class Preflight:
    """What all checks found, on which device, in which precision and how many seconds."""

    findings: list[CheckResult]
    device: str
    precision: str
    seconds: float

    @property
    def failures(self) -> list[CheckResult]:
        return [finding for finding in self.findings if finding.status is Status.FAILED]

    @property
    def verdict(self) -> str:
        """One line."""
        counts = {status: sum(f.status is status for f in self.findings) for status in Status}
        said = [f"{counts[s]} {s.value}" for s in Status if counts[s]]
        return f"{', '.join(said)} in {self.seconds:.1f} s ({self.device}, {self.precision})"

    def as_markdown(self) -> str:
        """A table for a dashboard."""
        rows = [f"| {f.status.value} | {f.check} | {_cell(f'{f.figure} {f.meaning}')} |" for f in self.findings]
        return "\n".join([f"{self.verdict}\n", "| | check | found |", "|---|---|---|", *rows])

    def as_data(self) -> dict[str, Any]:
        """What preflight.json holds."""
        return {
            "passed": not self.failures,
            "device": self.device,
            "precision": self.precision,
            "seconds": round(self.seconds, 2),
            "checks": [
                {"check": f.check, "status": f.status.value, "figure": f.figure, "meaning": f.meaning}
                for f in self.findings
            ],
        }


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def run_preflight(subject: CheckContext, folder: Path) -> Preflight:
    """Runs all checks; the run's weights and random numbers are afterwards what they were.

    Args:
        subject: The run, before it starts.
        folder: Where its checkpoints will go.
    """
    started = time.perf_counter()
    with chance_untouched(subject.device):
        findings = _all_checks(subject, folder)
    return Preflight(findings, str(subject.device), str(subject.trainer.precision), time.perf_counter() - started)


def _all_checks(subject: CheckContext, folder: Path) -> list[CheckResult]:
    found: list[CheckResult] = []

    def look(check: str, function: Callable[..., CheckResult | Iterable[CheckResult]], *arguments: Any) -> bool:
        """Whether all that it found is in order.

        A network that a check has not met the like of must not keep a sound run from starting.
        """
        new: list[CheckResult] = []
        try:
            result = function(*arguments)
            for finding in [result] if isinstance(result, CheckResult) else result:
                new.append(finding)
                found.append(finding)
        except torch.OutOfMemoryError as error:
            log.info("preflight: out of memory in %s", check, exc_info=error)
            found.append(failed(check, "the GPU's memory is too small", TOO_LARGE))
            return False
        except Exception as error:
            log.info("preflight: %s could not be looked at", check, exc_info=error)
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            found.append(skipped(check, f"could not be looked at ({reason[:200]}); run.log has more"))
            return False
        return all(finding.status in (Status.OK, Status.WARNING) for finding in new)

    look("what learns", learning_checks.what_learns, subject)
    look("normalised input", data_checks.normalised_input, subject)
    sound = look("augmentation", data_checks.augmented_range, subject)
    look("splits are apart", data_checks.shared_images, subject)
    if look("labels", data_checks.labels, subject):
        look("labels fit images", data_checks.labels_are_learnable, subject)
        look("mixing", data_checks.mixing, subject)
    else:
        sound = False
    if not sound:
        found.append(skipped("network", "not looked at: its images or labels are not in order"))
    elif look("head", network_checks.head, subject):
        look("loss at the start", learning_checks.loss_at_start, subject)
        look("network", _on_a_trained_copy, subject, look)
        look("recipe", _on_the_run_s_recipe, subject, look, folder)
    return found


def _on_a_trained_copy(subject: CheckContext, look: Callable[..., bool]) -> Iterable[CheckResult]:
    attempt = learning_checks.probe(subject)
    yield learning_checks.overfits(attempt)
    yield learning_checks.gradients(attempt)
    if attempt.broken:
        return
    rounded = attempt.twin.network.eval()
    network = copy.deepcopy(rounded).float()
    with exact_products():
        look("images are independent", network_checks.images_are_independent, subject, network)
        if look("sees its input", network_checks.depends_on_input, subject, network):
            look("order matters", network_checks.uses_positions, subject, network)
            # It compares with what images differ by.
            look("precision", network_checks.survives_precision, subject, rounded, network)
    look("work", cost_checks.work, subject, network)


def _on_the_run_s_recipe(subject: CheckContext, look: Callable[..., bool], folder: Path) -> Iterable[CheckResult]:
    twin = subject.copy()
    optimizer = twin.make_optimizer()
    yield learning_checks.optimizer_groups(twin, optimizer)
    started = time.perf_counter()
    yield from learning_checks.recipe(subject, twin, optimizer)
    seconds_per_image = (time.perf_counter() - started) / (learning_checks.STEPS * learning_checks.IMAGES)
    look("time", cost_checks.time_and_memory, subject, twin, optimizer, seconds_per_image)
    look("disk", cost_checks.disk, subject, twin, optimizer, folder)
