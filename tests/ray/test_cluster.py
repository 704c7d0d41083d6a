"""A sweep on a Ray cluster loses nothing when a node is lost."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from superlora_cli.sweeping.cluster import each_on_cluster
from superlora_cli.sweeping.folder import SweepFolder
from superlora_cli.sweeping.plan import load_plan
from tests.conftest import run_cli
from tests.forking.commands import FORKED, Commands
from tests.sweeping.conftest import TINY, Write, write  # noqa: F401
from tests.sweeping.test_sweep import bytes_of, results
from tests.tuning.test_tune import WORDS as SEARCH
from tests.tuning.test_tune import bytes_of as found_bytes

pytestmark = pytest.mark.slow

LONG = """\
recipe: quickstart
set: {train.steps: 100, eval.every: 50, train.checkpoint_every: 10}
grid: {adapter.rank: [1, 2, 3]}
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes with a CPU each, on this machine."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def nodes_at_work(folder: Path) -> set[str]:
    """Runs that have a checkpoint and are not done."""
    begun = {path.parents[2].name for path in folder.glob("runs/*/checkpoints/step-*/COMPLETE")}
    return begun - {path.parent.name for path in folder.glob("runs/*/adapter.safetensors")}


def test_every_run_exists_once_after_a_node_is_lost(
    cluster: Any,
    commands: Commands,
    write: Write,  # noqa: F811
) -> None:
    path, out = write(LONG), Path("out")
    lost: list[set[str]] = []

    def lose_a_node() -> None:
        deadline = time.monotonic() + 600
        while len(nodes_at_work(out)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        lost.append(nodes_at_work(out))
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    threading.Thread(target=lose_a_node).start()
    found = run_cli("sweep", path, "--out", out, "--ray", cluster.address, "--json").json()
    assert len(lost[0]) == 2, "it was over before the node was lost"
    assert (found["status"], found["completed"], found["left"]) == ("completed", 3, 0)
    rows = results(out)
    assert len(rows) == len({row["id"] for row in rows}) == 3
    commands.right("sweep", path, "--out", "here", "--workers", "2", "--quiet", cwd=Path.cwd(), setup=FORKED)
    assert bytes_of(out) == bytes_of("here")


def test_without_a_cluster_there_is_one_line(write: Write) -> None:  # noqa: F811
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    result = run_cli("sweep", write(TINY), "--out", "out", "--ray", "127.0.0.1:1", "--json")
    assert result.code == 2
    assert json.loads(result.out)["error"]["where"] == "--ray 127.0.0.1:1"


def test_a_search_on_a_cluster_finds_the_same(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [word if word != "9" else "4" for word in SEARCH]
    for place, how in (("alone", ("--workers", "1")), ("cluster", ("--ray", cluster.address))):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        found = run_cli(*words, *how, "--quiet")
        assert found.code == 0, found.err
    assert found_bytes(tmp_path / "cluster" / "out") == found_bytes(tmp_path / "alone" / "out")


def test_a_run_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:  # noqa: F811
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 2, "include_dashboard": False})
    try:
        folder = SweepFolder(Path("out"), load_plan(write(TINY + "runs: [{train.device: cpu}]\n")))
        jobs = [folder.job(run) for run in folder.plan.checked()]
        events = list(each_on_cluster(deque(jobs), "tests.sweeping.placing:carry_out", made.address))
    finally:
        made.shutdown()
    seen = {event.job.id: event.outcome.error for event in events if event.outcome}
    assert [seen[job.id] in ("0", "1") for job in jobs] == [True] * 4 + [False] * 2, seen
