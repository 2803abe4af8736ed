"""Images: sources -> uint8 arrays in memory -> shuffled batches -> batch transforms on the device."""

from vitlab.data.autoaugment import AutoAugment
from vitlab.data.cifar10 import CIFAR10DataModule
from vitlab.data.datamodule import Batch, DataSpec, ImageDataModule
from vitlab.data.erasing import RandomErasing
from vitlab.data.image_folder import ImageFolderDataModule
from vitlab.data.loader import StoredBatch
from vitlab.data.mixing import Mixing, main_class
from vitlab.data.random_augment import RandAugment, TrivialAugment
from vitlab.data.synthetic import SyntheticDataModule
from vitlab.data.transforms import BatchTransform, Normalize, RandomCrop, RandomHorizontalFlip, Resize

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
