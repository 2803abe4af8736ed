"""Reproducible Vision Transformer experiments on CIFAR-10."""

from importlib.metadata import version

__version__ = version("vitlab")
