"""Images: sources -> uint8 arrays in memory -> shuffled batches -> batch transforms on the device."""

from vitlab.data.cifar10 import CIFAR10DataModule
from vitlab.data.datamodule import Batch, ImageDataModule
from vitlab.data.image_folder import ImageFolderDataModule
from vitlab.data.random_operations import RandAugment, TrivialAugment
from vitlab.data.synthetic import SyntheticDataModule
from vitlab.data.transforms import BatchTransform, Normalize, RandomCrop, RandomHorizontalFlip, Resize

__all__ = [
    "Batch",
    "BatchTransform",
    "CIFAR10DataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "Normalize",
    "RandAugment",
    "RandomCrop",
    "RandomHorizontalFlip",
    "Resize",
    "SyntheticDataModule",
    "TrivialAugment",
]
