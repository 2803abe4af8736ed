"""Image sources, loaders and batch transforms."""

from vitlab.data.cifar import CIFAR10DataModule, CIFAR100DataModule
from vitlab.data.datamodule import Batch, DataSpec, ImageDataModule
from vitlab.data.image_folder import ImageFolderDataModule
from vitlab.data.image_table import CSVDataModule
from vitlab.data.random_augment import AutoAugment, RandAugment, TrivialAugment
from vitlab.data.synthetic import SyntheticDataModule
from vitlab.data.torchvision_sets import TorchvisionDataModule
from vitlab.data.transforms import BatchTransform, Mixing, RandomCrop, RandomErasing, RandomHorizontalFlip, main_class

__all__ = [
    "AutoAugment",
    "Batch",
    "BatchTransform",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "CSVDataModule",
    "DataSpec",
    "ImageDataModule",
    "ImageFolderDataModule",
    "Mixing",
    "RandAugment",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "SyntheticDataModule",
    "TorchvisionDataModule",
    "TrivialAugment",
    "main_class",
]
