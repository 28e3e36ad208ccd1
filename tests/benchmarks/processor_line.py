"""The line that each benchmark here begins with: figures without the processor's class mean nothing."""

from __future__ import annotations

from runner.hardware.processor import processor_class


def say_processor() -> None:
    print(f"processor {processor_class()}", flush=True)
