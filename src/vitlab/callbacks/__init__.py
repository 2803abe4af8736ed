"""What watches a run while it trains."""

from vitlab.callbacks.best_checkpoint import BestCheckpoint
from vitlab.callbacks.ema import EMA
from vitlab.callbacks.epoch_metrics import EpochMetricsCSV
from vitlab.callbacks.figures import Figures
from vitlab.callbacks.final_validation import FinalValidation
from vitlab.callbacks.finite_loss import FiniteLoss
from vitlab.callbacks.last_checkpoint import LastCheckpoint
from vitlab.callbacks.layer_statistics import LayerStatistics
from vitlab.callbacks.mirror_view import MirrorView
from vitlab.callbacks.predictions import CollectLogits
from vitlab.callbacks.progress import RunProgress
from vitlab.callbacks.step_profiler import StepProfiler
from vitlab.callbacks.throughput import Throughput
from vitlab.callbacks.training_clock import TrainingClock
from vitlab.callbacks.vit_figures import ViTFigures

__all__ = [
    "EMA",
    "BestCheckpoint",
    "CollectLogits",
    "EpochMetricsCSV",
    "Figures",
    "FinalValidation",
    "FiniteLoss",
    "LastCheckpoint",
    "LayerStatistics",
    "MirrorView",
    "RunProgress",
    "StepProfiler",
    "Throughput",
    "TrainingClock",
    "ViTFigures",
]
