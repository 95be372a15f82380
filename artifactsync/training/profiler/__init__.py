"""Where the time of a training step goes: traces of chosen batches, mirrored under the run.

Owns: what is traced when. Does not own: training (``trainer``), or the remote (``run``).

Invariant: without a profiler nothing here is imported or called in the training loop; with one, batches that the
schedule skips cost one comparison per event.
"""

from __future__ import annotations

from artifactsync.training.profiler.json_trace import JSONTraceHandler
from artifactsync.training.profiler.profiler import Profiler
from artifactsync.training.profiler.profiler_schedule import ProfilerAction, cyclic_schedule

__all__ = ["JSONTraceHandler", "Profiler", "ProfilerAction", "cyclic_schedule"]
