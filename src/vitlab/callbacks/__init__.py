"""Callbacks: what observes or steers training."""

from vitlab.callbacks.auxiliary_logits import EMA, FlipTTA
from vitlab.callbacks.checkpointing import BestCheckpoint, FinalValidation, LastCheckpoint, MetricsCSV
from vitlab.callbacks.figures import CollectLogits, Figures
from vitlab.callbacks.layer_statistics import LayerStatistics
from vitlab.callbacks.progress_bar import RunProgressBar
from vitlab.callbacks.step_profiler import StepProfiler
from vitlab.callbacks.stopping import NaNGuard, TimeLimit
from vitlab.callbacks.throughput import Throughput
from vitlab.callbacks.vit_figures import ViTFigures

__all__ = [
    "EMA",
    "BestCheckpoint",
    "CollectLogits",
    "Figures",
    "FinalValidation",
    "FlipTTA",
    "LastCheckpoint",
    "LayerStatistics",
    "MetricsCSV",
    "NaNGuard",
    "RunProgressBar",
    "StepProfiler",
    "Throughput",
    "TimeLimit",
    "ViTFigures",
]
