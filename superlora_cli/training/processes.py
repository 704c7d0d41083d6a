"""The processes that train together: a single one, or as many as `torchrun` or `accelerate launch` started.

Each holds the whole adapter and sees its own share of every batch. One exchange per step averages their gradients over
the whole batch; for an adapter these are few numbers. Only the main process writes files.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from torch import Tensor, nn

from superlora_cli.adapter.packed import move
from superlora_cli.errors import RunError, SuperLoraError, UsageError, first_line
from superlora_cli.launch import launched

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import TrainSection

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)
RngState = dict[str, Tensor]


class Processes:
    """This process among those of the run, with its device and precision.

    Attributes:
        accelerator: Accelerate's view of the same.
        count, index: number of processes, and index of this one.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.count: int = accelerator.num_processes
        self.index: int = accelerator.process_index
        self.is_main: bool = accelerator.is_main_process
        self.scaler: Any = accelerator.scaler  # for fp16 gradients; None in other precisions

    def autocast(self) -> AbstractContextManager[None]:
        """A context with the precision of the forward pass."""
        return cast("AbstractContextManager[None]", self.accelerator.autocast())

    def on_main(self, action: Callable[[], T]) -> T:
        """Run `action` in the main process and return its result in all; an error ends all, and main reports it."""
        if self.count == 1:
            return action()
        outcome: list[Any] = [None, None]  # result, exit code
        error = None
        if self.is_main:
            try:
                outcome[0] = action()
            except SuperLoraError as failure:
                error, outcome[1] = failure, failure.code
        with _someone_may_be_gone():
            broadcast_object_list(outcome)
        if error:
            raise error
        if outcome[1] is not None:
            raise SystemExit(outcome[1])
        return cast(T, outcome[0])

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Mark errors raised inside as errors of this process only, so that it reports them itself."""
        try:
            yield
        except SuperLoraError as error:
            if self.count > 1:
                error.process = self.index
            raise

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            with _someone_may_be_gone():
                self.accelerator.wait_for_everyone()

    def average(self, gradients: Sequence[Tensor], stop: bool) -> bool:
        """Replace tensors by their means over the processes, in one exchange; True if any process wants to `stop`."""
        if self.count == 1:
            return stop
        flag = torch.tensor([float(stop)], device=self.device)
        both = torch.cat([flag, *(gradient.flatten().float() for gradient in gradients)])
        with _someone_may_be_gone():
            means = cast(Tensor, self.accelerator.reduce(both, "mean"))
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, mean in zip(gradients, means[1:].split(sizes), strict=True):
            gradient.copy_(mean.view_as(gradient))
        return bool(means[0] > 0)

    def everyones(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, (count, ...)."""
        if self.count == 1:
            return tensor[None]
        with _someone_may_be_gone():
            return cast(Tensor, self.accelerator.gather(tensor[None].contiguous()))

    def share(self, length: int) -> list[int]:
        """This process's part of 0 … length − 1: every `count`-th index. All parts have the same length, so the last
        index may be repeated.

        `gather` is the inverse.
        """
        each = -(-length // self.count)
        return [min(self.index + self.count * i, length - 1) for i in range(each)]

    def gather(self, tensor: Tensor, length: int) -> Tensor:
        """The rows of all processes in order, (length, ...), given those of `share(length)` in each."""
        if self.count == 1:
            return tensor
        return self.everyones(tensor).transpose(0, 1).flatten(0, 1)[:length]

    def random_states(self) -> list[RngState]:
        """The states of the random generators of every process."""
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        if self.count == 1:
            return [state]
        with _someone_may_be_gone():
            return cast(list[RngState], gather_object([state]))

    def restore_random(self, states: Sequence[RngState]) -> None:
        """Restore this process's random state, if the checkpoint has one for it."""
        if self.index >= len(states):
            return
        state = states[self.index]
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)

    def seed(self, seed: int) -> None:
        """Seed the random numbers of this process, e.g. for dropout; those of the main process are left alone."""
        if not self.is_main:
            torch.manual_seed(seed * 1_000_003 + self.index)

    def place(self, model: M) -> M:
        """Move a model to this process's device, and return it."""
        move(model, self.device)
        return model

    def shard(self, model: nn.Module, whole: Collection[nn.Parameter]) -> None:
        """Shard all parameters except those in `whole` over the processes (FSDP); each block is gathered to run it.

        Blocks are the members of every list of modules of the same class. They are moved to the device one by one, so
        that it never holds the whole model.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        for parameter in whole:
            parameter.data = parameter.data.to(self.device)
        mesh = init_device_mesh(self.device.type, (self.count,))
        for parent in reversed(list(model.modules())):  # inner blocks before those around them
            children = list(parent.children())
            if isinstance(parent, nn.ModuleList | nn.Sequential) and len({type(child) for child in children}) == 1:
                for child in children:
                    fully_shard(child, mesh=mesh, ignored_params=set(whole))
        fully_shard(model, mesh=mesh, ignored_params=set(whole))

    def describe(self) -> dict[str, Any]:
        """The device and the number of processes and threads, for run.json: with the same, runs repeat exactly."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {"device": device, "processes": self.count, "threads": torch.get_num_threads()}

    def end(self) -> None:
        """Close trackers and leave the process group; otherwise some processes abort at exit."""
        self.accelerator.end_training()


def join(train: TrainSection) -> Processes:
    """Join the other processes of the launch, with the device and precision of a recipe.

    Raises:
        UsageError: the device or the precision is not available, or the processes cannot work together on it.
    """
    available = {"cpu": True, "auto": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[train.device]:
        raise UsageError(f"no {train.device} device available", where="train.device", hint="auto or cpu")
    if available["cuda"]:  # cuDNN's attention has given NaN gradients in bf16, for FLUX's blocks with 512 tokens
        torch.backends.cuda.enable_cudnn_sdp(False)
    AcceleratorState._reset_state(reset_partial_state=True)  # one process may train twice
    cpu = train.device == "cpu" or (train.device == "auto" and not (available["cuda"] or available["mps"]))
    if train.precision == "fp16" and cpu:
        raise UsageError("fp16 needs a GPU", where="train.precision", hint="bf16 or fp32")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Accelerate warns about the number of threads
            precision = "no" if train.precision == "fp32" else train.precision
            accelerator = Accelerator(mixed_precision=precision, cpu=cpu)
    except (ValueError, ImportError) as error:
        raise UsageError(f"{train.precision}: {error}", where="train.precision", hint="fp32") from None
    if train.threads:
        torch.set_num_threads(train.threads)
    if accelerator.num_processes != launched():
        message = f"{launched()} processes cannot train together on {accelerator.device.type}"
        raise UsageError(message, where="train.device", hint="cpu, cuda, or one process")
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        kind = accelerator.distributed_type.value
        raise UsageError(f"launched for {kind}", where="accelerate launch", hint="train.shard_base shards the base")
    if train.shard_base and accelerator.num_processes == 1:
        raise UsageError("needs several processes", where="train.shard_base",
                         hint="launch with torchrun or accelerate")  # fmt: skip
    return Processes(accelerator)


@contextmanager
def _someone_may_be_gone() -> Iterator[None]:
    """Turn the error of a failed exchange into one line: another process has ended, and has reported why."""
    try:
        yield
    except RuntimeError as error:
        cause = first_line(error)
        raise RunError(f"another process of this run has ended ({cause})", hint="its own message says why") from None
