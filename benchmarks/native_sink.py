"""The native sink (``sink.c``) as a process: plain or TLS, at full speed or like a line of some bandwidth.

Owns: compiling and starting it, and its certificate. Does not own: what is sent there.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOURCE = Path(__file__).with_name("sink.c")


@dataclass(frozen=True, kw_only=True)
class Sink:
    """A sink that runs."""

    endpoint_url: str
    """Of S3."""
    ca_file: str | None
    """The certificate to trust, in PEM; None for plain http."""


class NoTlsError(Exception):
    """The sink cannot speak TLS here; says why."""


@contextlib.contextmanager
def native_sink(
    folder: Path,
    *,
    root: Path | None = None,
    is_tls: bool = False,
    bytes_per_s: float | None = None,
    latency_s: float = 0.0,
    is_idle: bool = False,
) -> Iterator[Sink]:
    """Compile and start a sink.

    Args:
        folder: For the program and the certificate.
        root: Its files are served, each as the object of its path below it: one level of folders.
        is_tls: Whether it speaks TLS.
        bytes_per_s: The line's bandwidth, in each direction together; None: as fast as it goes.
        latency_s: Passes before each answer and before each new connection.
        is_idle: It takes no core from those who are measured: what is lost, they took.

    Raises:
        NoTlsError: there is no OpenSSL to compile against.
    """
    program = folder / ("sink-tls" if is_tls else "sink")
    extra = ["-DWITH_TLS", "-lssl", "-lcrypto"] if is_tls else []
    if not program.exists():
        command = ["cc", "-O2", "-pthread", "-o", program, _SOURCE, *extra]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode and is_tls:
            raise NoTlsError(f"OpenSSL's headers are needed: {built.stderr.strip().splitlines()[0]}")
        built.check_returncode()
    words: list[str | Path] = [program]
    if root is not None:
        words += ["--root", root]
    if is_tls:
        words += ["--tls", *_certificate(folder)]
    if bytes_per_s is not None:
        words += ["--bytes-per-s", str(bytes_per_s)]
    if latency_s:
        words += ["--latency-us", str(round(latency_s * 1e6))]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    if bytes_per_s is not None:
        with contextlib.suppress(OSError):  # a line is never short of a core; where it may not be raised, it may be
            os.setpriority(os.PRIO_PROCESS, process.pid, -15)
    if is_idle:
        os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))  # before it has any other thread
    try:
        assert process.stdout is not None
        host = f"127.0.0.1:{int(process.stdout.readline())}"
        ca_file = str(folder / "certificate.pem") if is_tls else None
        yield Sink(endpoint_url=f"{'https' if is_tls else 'http'}://{host}", ca_file=ca_file)
    finally:
        process.kill()
        process.wait()


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 with its key, by an authority of its own (rustls takes no self-signed one)."""
    authority, authority_key = folder / "certificate.pem", folder / "authority.key"
    certificate, key = folder / "server.pem", folder / "server.key"
    make = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30")
    if not certificate.exists():
        for words in (
            (*make, "-subj", "/CN=benchmark authority", "-keyout", authority_key, "-out", authority),
            (
                *(*make, "-subj", "/CN=127.0.0.1", "-CA", authority, "-CAkey", authority_key),
                *("-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=IP:127.0.0.1"),
                *("-keyout", key, "-out", certificate),
            ),
        ):
            made = subprocess.run(words, capture_output=True, text=True, check=False)
            if made.returncode:
                raise NoTlsError(f"no certificate can be made: {made.stderr.strip().splitlines()[-1]}")
    return certificate, key
