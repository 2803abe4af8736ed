"""Callbacks: what observes or steers training."""

from vitlab.callbacks.checkpointing import BestCheckpoint, EpochCheckpoint, FinalValidation, LastCheckpoint
from vitlab.callbacks.ema import EMA, ViewAveraging
from vitlab.callbacks.embeddings import Features
from vitlab.callbacks.figures import CollectLogits, Figures
from vitlab.callbacks.layer_statistics import LayerStatistics
from vitlab.callbacks.metrics_csv import MetricsCSV
from vitlab.callbacks.momentum_warmup import MomentumWarmup
from vitlab.callbacks.nan_guard import NaNGuard
from vitlab.callbacks.patch_dropout_stages import PatchDropoutStages
from vitlab.callbacks.progress_bar import RunProgressBar
from vitlab.callbacks.step_profiler import StepProfiler
from vitlab.callbacks.throughput import Throughput
from vitlab.callbacks.time_limit import TimeLimit
from vitlab.callbacks.vit_figures import ViTFigures

__all__ = [
    "EMA",
    "BestCheckpoint",
    "CollectLogits",
    "EpochCheckpoint",
    "Features",
    "Figures",
    "FinalValidation",
    "LastCheckpoint",
    "LayerStatistics",
    "MetricsCSV",
    "MomentumWarmup",
    "NaNGuard",
    "PatchDropoutStages",
    "RunProgressBar",
    "StepProfiler",
    "Throughput",
    "TimeLimit",
    "ViTFigures",
    "ViewAveraging",
]
