"""Image sources, loaders and batch transforms."""

from vitlab.data.cifar10 import CIFAR10DataModule
from vitlab.data.datamodule import Batch, DataSpec, ImageDataModule
from vitlab.data.image_folder import ImageFolderDataModule
from vitlab.data.loader import StoredBatch
from vitlab.data.mixing import Mixing, main_class
from vitlab.data.random_augment import AutoAugment, RandAugment, TrivialAugment
from vitlab.data.synthetic import SyntheticDataModule
from vitlab.data.transforms import BatchTransform, Normalize, RandomCrop, RandomErasing, RandomHorizontalFlip, Resize

__all__ = [
    "AutoAugment",
    "Batch",
    "BatchTransform",
    "CIFAR10DataModule",
    "DataSpec",
    "ImageDataModule",
    "ImageFolderDataModule",
    "Mixing",
    "Normalize",
    "RandAugment",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "Resize",
    "StoredBatch",
    "SyntheticDataModule",
    "TrivialAugment",
    "main_class",
]
