"""Image sources, loaders and batch transforms."""

from vitlab.data.cifar import CIFAR10DataModule, CIFAR100DataModule
from vitlab.data.datamodule import Batch, DataSpec, ImageDataModule
from vitlab.data.image_folder import ImageFolderDataModule
from vitlab.data.image_table import CSVDataModule
from vitlab.data.photometric import ColorJitter, GaussianBlur, RandomGrayscale
from vitlab.data.random_augment import AutoAugment, RandAugment, TrivialAugment
from vitlab.data.synthetic import SyntheticDataModule
from vitlab.data.torchvision_sets import TorchvisionDataModule
from vitlab.data.transforms import (
    BatchTransform,
    Mixing,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
    main_class,
)

__all__ = [
    "AutoAugment",
    "Batch",
    "BatchTransform",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "CSVDataModule",
    "ColorJitter",
    "DataSpec",
    "GaussianBlur",
    "ImageDataModule",
    "ImageFolderDataModule",
    "Mixing",
    "RandAugment",
    "RandomCrop",
    "RandomErasing",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomVerticalFlip",
    "SyntheticDataModule",
    "TorchvisionDataModule",
    "TrivialAugment",
    "main_class",
]
