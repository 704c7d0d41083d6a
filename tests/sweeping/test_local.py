"""The processes in which a sweep's runs are executed."""

from __future__ import annotations

import signal
from pathlib import Path

from superlora_cli.sweeping.local import Worker


def test_starting_a_worker_leaves_a_blocked_signal_blocked(tmp_path: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    worker = Worker("tests.sweeping.placing:carry_out", None, tmp_path / "workers.log")
    try:
        worker._start()
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        worker.process.kill()
        worker.process.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
