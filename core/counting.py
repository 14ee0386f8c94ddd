"""Code in, run on tensors without contents; out, the bytes and the arithmetic that it would need.

What is counted is code itself, so that no table of formulas has to be kept equal to it.
"""

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

NUMBER = torch.ops.aten._local_scalar_dense.default
"""What asks a tensor for its number; one without contents has 0, which also means no."""
DEVICE = torch.ops.prim.device.default
"""What asks a tensor where it is: more than half of all calls."""

FLOPS: dict[Any, Any] = {
    **flop_registry,
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
}
"""torch counts only what is not in place."""


class Cost(NamedTuple):
    """Of one piece of work: the most bytes that lived at once, and floating-point operations."""

    peak: int
    flops: int


class Tally(TorchDispatchMode):
    """Within, new tensors are counted in bytes until they are freed, and operations for good."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is NUMBER and isinstance(args[0], FakeTensor):
            return False if args[0].dtype == torch.bool else 0
        if func is DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # as its own mode would say, only sooner
        out = func(*args, **(kwargs or {}))
        count = FLOPS.get(func._overloadpacket)
        if count:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self.add(value)
        return out

    @contextlib.contextmanager
    def work(self, costs: dict[str, Cost], name: str) -> Iterator[None]:
        """Within, one piece of work, of which `costs` may hold others under the same name."""
        self.peak, before = self.live, self.flops
        yield
        known = costs.get(name, Cost(0, 0))
        flops = known.flops + self.flops - before
        costs[name] = Cost(max(known.peak, self.peak), flops)

    def add(self, tensor: Tensor) -> None:
        """Count one that was there before, or is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


class DryRun:
    """Within `counting`, tensors have no contents and cost nothing; a tally is kept of them."""

    def __init__(self) -> None:
        self.tally, self._empty = Tally(), FakeTensorMode(allow_non_fake_inputs=True)

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """May be left, for work on real tensors, and entered again."""
        with self._empty, self.tally:
            yield

    def materialise(self, module: nn.Module) -> int:
        """Within `counting`, weights for a module from the meta device; how many bytes.

        What is shared in the module stays shared.
        """
        before, known = self.tally.live, {}
        for part in module.modules():
            stores: list[dict[str, Any]] = [part._parameters, part._buffers]
            for store in stores:
                for name, tensor in store.items():
                    if tensor is not None:
                        if id(tensor) not in known:
                            known[id(tensor)] = _empty_like(tensor)
                        store[name] = known[id(tensor)]
        return self.tally.live - before


def norms_in_float32(network: nn.Module) -> None:
    """Layer and group norms as autocast has them on CUDA; on a CPU it leaves them in bf16."""
    for module in network.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.float()
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def _empty_like(tensor: Tensor) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, tensor.requires_grad)
    return empty
