"""Weights that come from elsewhere and go elsewhere: pretrained files and the hub, timm's layout, ONNX."""

from vitlab.weights.fitting import LoadReport, fit_weights
from vitlab.weights.source import Weights, find_weights

__all__ = ["LoadReport", "Weights", "find_weights", "fit_weights"]
