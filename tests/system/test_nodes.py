"""A Ray node that joins a live run and leaves it: a second node on this machine, with real roles on it."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from asyncrl import cli
from tests.support.launch import STAND_IN, Launched, assert_exact, launch, quick

pytestmark = pytest.mark.system


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Of one node; in a folder of its own, where no `ray.init()` of others finds it."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short, since the paths of Unix sockets are
    monkeypatch.setenv("RAY_TMPDIR", folder)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder)


@contextmanager
def launched_on(cluster: Cluster, folder: Path) -> Iterator[Launched]:
    settings = [
        f"cluster.ray_address={cluster.address}",
        "cluster.allow_open_ray=true",
        *quick(100_000, "run.eval_every=0", STAND_IN),
    ]
    run = launch(folder, *settings, name="nodes")
    try:
        yield run
    finally:
        run.process.kill()


def test_a_generator_whose_node_has_left_goes_on_on_another(cluster: Cluster, runs: Path) -> None:
    with launched_on(cluster, runs) as run:
        run.wait_for_step(3)
        node = cluster.add_node(num_cpus=4)
        assert cli.main(["scale", str(run.run_dir), "--generators", "2"]) == 0
        both = run.wait_for_row("generator/num_serving", 2)
        cluster.remove_node(node, allow_graceful=False)
        run.wait_for_output("generator-1 starts on node 0")
        one = run.wait_for_row("generator/num_serving", 1, after=both)
        run.wait_for_row("generator/num_serving", 2, after=one)
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 130, run.output
        assert "generator-1 starts on node 0: node 1 has left the cluster" in run.output
        assert_exact(run, len(run.rows()))
