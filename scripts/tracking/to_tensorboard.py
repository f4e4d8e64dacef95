"""TensorBoard, by its own writer: event files in the run directory. No torch, no TensorFlow."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.tracking.told import Point, Told, Tracker, Where


class Tensorboard(Tracker):
    """Event files: scalars by step, and texts with the values, the facts and the outputs."""

    def begin(self, told: Told) -> Where:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = self.folder / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):  # of the same run, told again
            old.unlink()
        self._writer = EventFileWriter(str(folder))
        self._text("values", told.values, told.began)
        self._text("run", told.facts, told.began)
        self._writer.flush()
        return Where(id=told.id, folder=folder)

    def measure(self, points: Sequence[Point]) -> None:
        for one in points:
            self._scalar(one.name, one.value, one.time, one.step)
        self._writer.flush()

    def end(self, told: Told) -> None:
        at = told.ended or time.time()
        for name, value in told.figures.items():
            self._scalar(f"report/{name}", value, at, 0)
        self._text("run", told.facts, at, step=1)
        self._text("outputs", {str(one.get("type")): json.dumps(one) for one in told.outputs}, at)
        self._writer.close()

    def _scalar(self, name: str, value: float, at: float, step: int) -> None:
        self._add({"tag": name, "simple_value": value}, at, step)

    def _text(self, name: str, rows: Mapping[str, Any], at: float, step: int = 0) -> None:
        """A table, as Markdown has it."""
        lines = [f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in rows.items()]
        text = "\n".join(["| | |", "|---|---|", *lines]).encode()
        tensor = {"dtype": "DT_STRING", "string_val": [text], "tensor_shape": {"dim": [{"size": 1}]}}
        self._add({"tag": name, "metadata": {"plugin_data": {"plugin_name": "text"}}, "tensor": tensor}, at, step)

    def _add(self, value: Mapping[str, Any], at: float, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=at, step=step, summary={"value": [value]}))
