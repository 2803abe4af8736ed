"""A fake accelerator: tensors with real values on the CPU that report another device.

On it whole runs work, backward pass included. It refuses a CPU tensor where one of the device is needed, as a GPU does,
and records what makes the host wait and how many operations the device is given.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lightning_fabric.accelerators import CPUAccelerator as FabricCPUAccelerator
from lightning_fabric.strategies import SingleDeviceStrategy as FabricSingleDeviceStrategy
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from vitlab.compat import precise_dtype
from vitlab.data import counter_rng, random_augment, transforms

DEVICE = torch.device("meta")  # autograd computes the gradients of tensors there in the CPU's thread
aten = torch.ops.aten
# Their results' shapes depend on values, which the host waits for.
SHAPED_BY_VALUES = (aten.nonzero.default, aten.masked_select.default, aten._unique2.default)
SHIFTS = (aten.bitwise_right_shift.Tensor_Scalar, aten.__rshift__.Scalar, aten.bitwise_left_shift.Tensor_Scalar)
DOUBLES = (torch.float64, torch.complex128)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
LIBRARIES = ("/src/vitlab/", "/pytorch_lightning/", "/lightning_fabric/", "/torchmetrics/", "/timm/", "/torchvision/")


class Record:
    """What a run did on the fake device while `active`: in steps that neither begin an epoch nor log.

    Attributes:
        waits: What made the host wait, with the line of ours or of a library, and how often.
        operations: The number of operations of each of these steps, views left out.
    """

    def __init__(self) -> None:
        self.active = False
        self.waits: Counter[str] = Counter()
        self.operations: list[int] = []
        self.count = 0
        self.is_apple = False  # whether the device has no float64, and integers of 64 bits only if `has_int64`
        self.has_int64 = True

    def wait(self, what: str) -> None:
        if self.active:
            self.waits[f"{what} at {_caller()}"] += 1


record = Record()


def _caller() -> str:
    for frame in reversed(traceback.extract_stack()):
        if any(library in frame.filename for library in LIBRARIES):
            return f"{frame.filename.split('site-packages/')[-1].split('/src/')[-1]}:{frame.lineno}"
    return "a test"


class DeviceTensor(Tensor):
    """A tensor on the fake device; `held` has its values on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> "DeviceTensor":
        made: DeviceTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            layout=real.layout,
            device=DEVICE,
        )
        made.held = real
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_operation(func, args, kwargs or {})

    def tolist(self) -> Any:
        record.wait("tolist")
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a tensor on the device can't become an array: .cpu() first")

    __array__ = numpy

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.held})"


class FakeDevice(TorchDispatchMode):
    """While active, tensors that are made on `DEVICE` have values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_operation(func, args, kwargs or {})


def run_operation(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the values of its tensors, where they are as a GPU demands it, and record what it costs."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_device = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    target = kwargs.get("device")
    to_device = target is not None and torch.device(target).type == DEVICE.type
    if not on_device and not to_device:
        return func(*args, **kwargs)

    real_args, real_kwargs = tree_map_only(DeviceTensor, lambda tensor: tensor.held, (args, dict(kwargs)))
    if to_device:
        real_kwargs |= {"device": torch.device("cpu")}
    if real_kwargs.get("pin_memory"):
        real_kwargs["pin_memory"] = False

    # What crosses between host and device.
    if func is aten._local_scalar_dense.default:
        record.wait("item")
        return func(*real_args)
    if func is aten._to_copy.default and target is not None and bool(on_device) != to_device:
        if not (kwargs.get("non_blocking") and getattr(args[0], "pinned", False)):
            record.wait("copy to the device" if to_device else "copy to the host")
        if not to_device:
            return func(*real_args, **real_kwargs).clone()
    elif func is aten.copy_.default and len(on_device) == 1:
        record.wait("copy between host and device")
        if not isinstance(args[0], DeviceTensor):
            return func(*real_args, **real_kwargs)
    elif func in SHAPED_BY_VALUES:
        record.wait(str(func))
    elif any(tensor.dim() for tensor in tensors if not isinstance(tensor, DeviceTensor)):  # a number is an argument
        if func not in INDEXING or not isinstance(args[0], DeviceTensor):
            raise RuntimeError(f"{func}: a CPU tensor meets one on the device at {_caller()}")
        record.wait("index on the host")

    if record.active and not func.is_view:
        record.count += 1
    if not record.has_int64 and func in SHIFTS:
        raise NotImplementedError(f"The operator '{func}' is not currently implemented for the MPS device")
    found = func(*real_args, **real_kwargs)
    if record.is_apple and any(isinstance(leaf, Tensor) and leaf.dtype in DOUBLES for leaf in tree_leaves(found)):
        raise TypeError(
            f"Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64: {func}"
        )
    result = tree_map_only(Tensor, _on_device, found)
    if not on_device or func is aten._to_copy.default:
        return result
    return return_and_correct_aliasing(func, args, kwargs, result)


def _on_device(tensor: Tensor) -> DeviceTensor:
    return tensor if isinstance(tensor, DeviceTensor) else DeviceTensor(tensor)


def _as_apple(device: torch.device) -> torch.device:
    return torch.device("mps") if device == DEVICE else device


def _pin(tensor: Tensor) -> Tensor:
    tensor.pinned = True  # type: ignore[attr-defined]
    return tensor


@contextmanager
def fake_device(
    monkeypatch: pytest.MonkeyPatch, *, holds_images: bool = True, is_apple: bool = False, has_int64: bool = True
) -> Iterator[Record]:
    """Let Lightning's CPU accelerators use the fake device, which has memory for all images or not, and if `is_apple`
    no float64; give a new record."""
    record.__init__()  # type: ignore[misc]
    record.is_apple, record.has_int64 = is_apple, has_int64
    counter_rng._counts_as_the_cpu.cache_clear()
    for table in (random_augment.magnitudes, random_augment.has_direction, random_augment.policies):
        table.cache_clear()  # it was made on another device
    if is_apple:
        for module in (transforms, random_augment):
            monkeypatch.setattr(module, "precise_dtype", lambda device: precise_dtype(_as_apple(device)))
    make, advance = torch.tensor, _TrainingEpochLoop.advance

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        made = make(data, *args, **kwargs)
        return made if device is None else made.to(device)  # the original does it unseen by a mode

    def recorded(loop: Any, fetcher: Any) -> None:
        batch = loop.batch_progress.current.ready
        record.active, before = batch > 0 and not loop.trainer.lightning_module._is_logged_step(batch), record.count
        try:
            advance(loop, fetcher)
        finally:
            if record.active:
                record.operations.append(record.count - before)
            record.active = False

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(_TrainingEpochLoop, "advance", recorded)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # which raises for this device
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # a wrapper's views need autograd's records
    for strategy in (SingleDeviceStrategy, FabricSingleDeviceStrategy):
        monkeypatch.setattr(strategy, "root_device", property(lambda strategy: DEVICE))
    for accelerator in (CPUAccelerator, FabricCPUAccelerator):
        monkeypatch.setattr(accelerator, "setup_device", lambda accelerator, device: None)
    home = DEVICE if holds_images else torch.device("cpu")
    monkeypatch.setattr("vitlab.data.datamodule._choose_device", lambda arrays, device: home)
    monkeypatch.setattr(Tensor, "pin_memory", _pin)
    with FakeDevice():
        yield record
