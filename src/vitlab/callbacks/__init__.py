"""What watches a run while it trains."""

from vitlab.callbacks.best_checkpoint import BestCheckpoint
from vitlab.callbacks.checkpointing import LastCheckpoint
from vitlab.callbacks.collect_logits import CollectLogits
from vitlab.callbacks.ema import EMA
from vitlab.callbacks.figures import Figures
from vitlab.callbacks.final_validation import FinalValidation
from vitlab.callbacks.flip_tta import FlipTTA
from vitlab.callbacks.layer_statistics import LayerStatistics
from vitlab.callbacks.metrics_csv import MetricsCSV
from vitlab.callbacks.nan_guard import NaNGuard
from vitlab.callbacks.progress_bar import RunProgressBar
from vitlab.callbacks.step_profiler import StepProfiler
from vitlab.callbacks.throughput import Throughput
from vitlab.callbacks.time_limit import TimeLimit
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
