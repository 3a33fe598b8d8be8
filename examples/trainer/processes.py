"""One process, or many that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .problems import OptionError

# Long enough for the first process to prepare the largest data set while the others wait.
PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class Processes:
    """Which process this is, of how many, and where it computes."""

    rank: int
    local_rank: int  # among those of this machine
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """The one that writes and prints."""
        return self.rank == 0

    @property
    def many(self) -> bool:
        return self.world > 1

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.many:
            dist.barrier()

    @contextmanager
    def first_on_each_machine(self) -> Iterator[None]:
        """What one process prepares and stores, the others of its machine find done."""
        if self.local_rank != 0:
            self.wait()
        yield
        if self.local_rank == 0:
            self.wait()

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes."""
        if not self.many:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def gathered(self, value: Any) -> list[Any]:
        """Every process's value, in the main one; the others get an empty list."""
        if not self.many:
            return [value]
        found: list[Any] = [None] * self.world
        dist.gather_object(value, found if self.is_main else None)
        return found if self.is_main else []

    def agree(self, value: Any) -> list[Any]:
        """Every process's value, in every process; so all can raise the same error."""
        if not self.many:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the main one's values."""
        if self.many:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def size_of_world() -> tuple[int, int, int]:
    """Rank, rank on this machine and number of processes, from torchrun's environment."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    rank, local, world = (int(os.environ.get(n, d)) for n, d in zip(names, "001", strict=True))
    return rank, local, world


@contextmanager
def started(device: str) -> Iterator[Processes]:
    """All processes, connected: over NCCL on GPUs, else over Gloo.

    Raises ``OptionError`` where a machine has fewer GPUs than processes.
    """
    rank, local, world = size_of_world()
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    place = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        # Of all that share the machine, so that none waits for those that cannot start.
        here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1)), torch.cuda.device_count()
        if here > gpus:
            raise OptionError(
                f"{here} processes on a machine of {gpus} GPUs: each must have one of its own. "
                f"Start torchrun with --nproc-per-node {gpus}, or pass --device cpu."
            )
        torch.cuda.set_device(place)
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Processes(rank, local, world, place)
    finally:
        if world > 1:
            dist.destroy_process_group()
