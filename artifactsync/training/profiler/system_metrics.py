"""What the machine does while batches are profiled: CPU, memory, disk, network, GPU, as counters of the trace.

Owns: the sampling thread. Does not own: where counters go (``json_trace``).

Invariant: it samples only between ``start`` and ``stop``, on a thread that never holds up training.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch

from artifactsync.errors import MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Gauge = Callable[[], Mapping[str, float]]


class SystemMetrics:
    """Samples what was asked for.

    Args:
        record: Called with the name and the values of each group of counters.
        cpu: Per cent of the machine and of this process.
        memory: Bytes in use, of the machine, this process and the GPU.
        disk: Bytes read and written so far.
        net: Bytes received and sent so far.
        interval_s: Seconds between two samples.

    Raises:
        MissingPackageError: psutil is not installed.
    """

    def __init__(
        self,
        record: Callable[[str, Mapping[str, float]], None],
        *,
        cpu: bool,
        memory: bool,
        disk: bool,
        net: bool,
        interval_s: float,
    ) -> None:
        self._record, self._interval_s = record, interval_s
        wanted = {"cpu": cpu, "memory": memory, "disk": disk, "net": net}
        self._gauges: dict[str, Gauge] = _gauges({name for name, is_on in wanted.items() if is_on})
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to sample."""
        if self._thread is None and self._gauges:
            stop = self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(stop,), name="artifactsync-profile", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End it."""
        if self._thread is not None and self._stop is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _run(self, stop: threading.Event) -> None:
        while True:
            for name, gauge in self._gauges.items():
                try:
                    values = gauge()
                except (OSError, RuntimeError, ValueError):  # a counter that this system does not have after all
                    continue
                self._record(name, values)
            if stop.wait(self._interval_s):
                return


def _gauges(wanted: set[str]) -> dict[str, Gauge]:
    if not wanted:
        return {}
    try:
        import psutil  # noqa: PLC0415  (only where it is asked for)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "the profiler's system metrics need psutil, which is not installed",
            hint="pip install psutil, or Profiler(sys_prof_cpu=False)",
        ) from error
    process = psutil.Process()
    found: dict[str, Gauge] = {}
    if "cpu" in wanted:
        psutil.cpu_percent()
        process.cpu_percent()
        found["cpu, %"] = lambda: {"machine": psutil.cpu_percent(), "process": process.cpu_percent()}
    if "memory" in wanted:
        found["memory, bytes"] = lambda: {
            "machine": float(psutil.virtual_memory().used),
            "process": float(process.memory_info().rss),
        }
    if "disk" in wanted and psutil.disk_io_counters() is not None:
        found["disk, bytes"] = lambda: _pair(psutil.disk_io_counters(), "read_bytes", "write_bytes")
    if "net" in wanted and psutil.net_io_counters() is not None:
        found["network, bytes"] = lambda: _pair(psutil.net_io_counters(), "bytes_recv", "bytes_sent")
    if torch.cuda.is_available():
        found["GPU memory, bytes"] = _gpu_memory
        if "cpu" in wanted and _has_gpu_utilization():
            found["GPU, %"] = lambda: {"busy": float(torch.cuda.utilization())}
    return found


def _pair(counters: Any, *names: str) -> dict[str, float]:
    return {name: float(getattr(counters, name)) for name in names}


def _gpu_memory() -> dict[str, float]:
    free, total = torch.cuda.mem_get_info()
    return {
        "allocated": float(torch.cuda.memory_allocated()),
        "reserved": float(torch.cuda.memory_reserved()),
        "device": float(total - free),
    }


def _has_gpu_utilization() -> bool:
    try:
        torch.cuda.utilization()
    except Exception:  # noqa: BLE001  (no pynvml, or no right to ask: then there is no such counter)
        return False
    return True
