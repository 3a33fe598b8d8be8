"""What a training measures: lines of JSON, and TensorBoard beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

NAME = "metrics.jsonl"
DRAWN = ("loss", "accuracy", "lr", "closed")


class Metrics:
    """Appends one line per measurement to ``metrics.jsonl``; other processes write nothing.

    What depends on the clock is in a field of its own, ``timing``. ``length`` is the number of
    bytes that a resumed run keeps, ``step`` the last step that it does not repeat.
    """

    def __init__(
        self, folder: Path, *, writes: bool, tensorboard: bool, length: int = 0, step: int = 0
    ) -> None:
        self.stream: Any = None
        self.board: Any = None
        if not writes:
            return
        self.stream = (folder / NAME).open("ab")
        self.stream.truncate(length)
        self.stream.seek(0, os.SEEK_END)  # truncating leaves the place where the old end was
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for part in (self.stream, self.board):
            if part is not None:
                part.close()

    def write(self, line: dict[str, Any], overall: int) -> None:
        """One measurement; ``overall`` is its step, counted over all stages."""
        if self.stream is None:
            return
        self.stream.write(json.dumps(line).encode() + b"\n")
        self.stream.flush()
        if self.board is not None:
            values = {name: line[name] for name in DRAWN if line.get(name) is not None}
            for name, value in (values | line.get("timing", {})).items():
                self.board.add_scalar(f"{line['split']}/{name}", value, overall)

    def length(self) -> int:
        """Bytes written so far, all of them on the disk."""
        if self.stream is None:
            return 0
        self.stream.flush()
        os.fsync(self.stream.fileno())
        return self.stream.tell()
