"""Disks that are full, read-only, slow or failing, and files that vanish.

As root on Linux a small tmpfs is mounted. Elsewhere the size of files is limited, and folders may not be written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.faults.kills import ON_A_PIPELINE, SLOW, SWEEP, TRAIN, VICTIMS, Victim, prepare, results, start
from tests.faults.material import BASE, Material
from tests.faults.trials import Trial, complaint, contents, outcome
from tests.faults.whole import half_written

LARGE, PAGE = 64 * 2**20, 4096  # bytes
ON_PIPELINES = ("train on a pipeline",)
WRITERS = ("train", "merge", "generate", "export", "train without adapter", "merge into a file")
READ_ONLY = (
    TRAIN[:-3],
    ("merge", "ADAPTER", "--out", "m.safetensors"),
    ("export", "ADAPTER", "--to", "delta", "--out", "d.safetensors"),
    ("compress", "ADAPTER", "--bits", "3", "--out", "c.safetensors"),
    ("export", "ADAPTER", "--to", "peft-lora", "--out", "peft"),
    ("generate", "glyphs_unet", "--num", "1", "--steps", "1", "--out", "images"),
    ("inspect", "ADAPTER", "--delta", "d.safetensors"),
    ("combine", "ADAPTER", "ADAPTER", "--out", "c.safetensors"),
    ("count-params", "--plot", "p.svg"),
    ("report", "RUN", "--out", "report.html"),
    ("sweep", "sweep.yaml", "--out", "sweep", "--index", "0"),
)
VANISHING = (
    (("eval", "adapter.safetensors"), "adapter.safetensors"),
    (("merge", "adapter.safetensors", "--base", "base.safetensors", "--out", "m.safetensors"), "base.safetensors"),
    (("merge", "adapter.safetensors", "--out", "m.safetensors"), "adapter.safetensors"),
    ((*TRAIN[:2], *TRAIN[2:-3], "--quiet"), "run"),
    ((*TRAIN[:2], *TRAIN[2:-3], "--quiet"), "run/checkpoints"),
    (("generate", "glyphs_unet", "--num", "4", "--steps", "2", "--out", "images"), "images"),
)


def full(material: Material, draw: random.Random, rounds: int, writers: tuple[str, ...] = WRITERS) -> Iterator[Trial]:
    """The disk fills up at some moment of a command; with more room the same command ends right."""
    right: dict[str, dict[str, bytes]] = {}
    given: dict[str, int] = {}  # bytes before, and after
    need: dict[str, int] = {}
    for turn in range(rounds):
        name = writers[turn % len(writers)]
        victim = (VICTIMS | ON_A_PIPELINE)[name]
        if name not in right:
            with _disk(material, LARGE) as place:
                prepare(material, place)
                given[name] = _pages(place)
                if (done := start(material, victim, place).done).code:
                    raise AssertionError(done.err)
                right[name], need[name] = results(place, victim), _pages(place)
        size = given[name] + draw.randrange(PAGE, max(need[name] - given[name], 3 * PAGE), PAGE)
        with _disk(material, size) as place:
            prepare(material, place)
            setup = () if mounts() else (f"{__name__}:small_files:{size // 8}",)
            done = start(material, victim, place, setup).done
            said, fault = outcome(done), complaint(done) or half_written(place)
            if fault is None and done.code not in (0, 1):
                fault = f"exit code {done.code}: {done.err[-300:]}"
            if fault is None and done.code:
                _mount(place, f"remount,size={LARGE}")
                said = "failed with one line; with room it ends as if undisturbed"
                fault = _again(material, place, victim, right[name])
        yield Trial("disks", f"full, {name}", said, fault)


def failing(material: Material, draw: random.Random, rounds: int) -> Iterator[Trial]:
    """The system reports an error of the device when data are to be made safe."""
    for turn in range(rounds):
        name = WRITERS[turn % len(WRITERS)]
        setup = (f"{__name__}:errors_from:{draw.randrange(1, 12 if name.startswith('train') else 3)}",)
        with material.folder() as place:
            done = material.commands.start(*material.fill(VICTIMS[name].words), cwd=place, setup=setup).done
            fault = complaint(done) or half_written(place)
            if fault is None and done.code not in (0, 1):
                fault = f"exit code {done.code}: {done.err[-300:]}"
        yield Trial("disks", "input/output errors", outcome(done), fault)


def read_only(material: Material, draw: random.Random, rounds: int) -> Iterator[Trial]:
    """Nothing may be written where a command would write."""
    for turn in range(rounds):
        words = material.fill(READ_ONLY[turn % len(READ_ONLY)])
        with _disk(material, LARGE) as place:
            (place / "sweep.yaml").write_text(SWEEP)
            _protect(place)
            done = material.commands.start(*words, cwd=place).done
            fault = complaint(done)
            if fault is None and (done.code != 2 or list(contents(place)) != ["sweep.yaml"]):
                fault = f"{words[0]} ends with exit code {done.code}: {done.err[-300:]}"
        yield Trial("disks", "read-only", outcome(done), fault)


def vanishing(material: Material, draw: random.Random, rounds: int) -> Iterator[Trial]:
    """A file or folder is removed while a command is at it."""
    for turn in range(rounds):
        words, gone = VANISHING[turn % len(VANISHING)]
        with material.folder() as place:
            shutil.copy(material.adapter, place / "adapter.safetensors")
            shutil.copy(BASE, place / "base.safetensors")
            running = material.commands.start(*words, cwd=place, setup=SLOW)
            time.sleep(draw.uniform(0, 1.5))
            with contextlib.suppress(OSError):
                shutil.rmtree(place / gone) if (place / gone).is_dir() else (place / gone).unlink()
            done = running.done
            fault = complaint(done)
        yield Trial("disks", f"{gone.partition('.')[0]} vanishes", outcome(done), fault and f"{words[0]}: {fault}")


def slow(material: Material, draw: random.Random, rounds: int) -> Iterator[Trial]:
    """Every write takes its time: the result is the same."""
    for name in WRITERS[:rounds]:
        victim = VICTIMS[name]
        found = []
        for setup in ((), SLOW):
            with material.folder() as place:
                done = material.commands.start(*material.fill(victim.words), cwd=place, setup=setup).done
                found.append((done.code, results(place, victim)))
        yield Trial("disks", "slow", "the same result", None if found[0] == found[1] else f"{name} ends differently")


def _pages(place: Path) -> int:
    """Bytes that the files of a folder take on the disk."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in place.rglob("*"))


def _again(material: Material, place: Path, victim: Victim, right: dict[str, bytes]) -> str | None:
    again = start(material, victim, place).done
    if again.code or results(place, victim) != right:
        return f"with more room it ends differently: {again.err[-300:]}"
    return None


@cache
def mounts() -> bool:
    """Whether file systems can be mounted here."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _mount(place: Path, options: str) -> None:
    if mounts():
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], check=True)


def _protect(place: Path) -> None:
    _mount(place, "remount,ro")
    if not mounts():
        place.chmod(0o555)


@contextmanager
def _disk(material: Material, size: int) -> Iterator[Path]:
    """A folder with room for `size` bytes, where that can be had."""
    with material.folder() as place:
        _mount(place, f"size={size}")
        try:
            yield place
        finally:
            if mounts():
                subprocess.run(["umount", "--lazy", str(place)], check=True)
            place.chmod(0o755)


def small_files(size: str) -> None:
    """In a command: no file may be larger than `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), resource.RLIM_INFINITY))


def errors_from(count: str) -> None:
    """In a command: from the `count`th sync on there are errors."""
    plain, left = os.fsync, [int(count)]

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        plain(handle)

    os.fsync = fsync
