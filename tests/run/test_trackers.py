from __future__ import annotations

import json
import math
import os
import socket
import sqlite3
import struct
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError
from asyncrl.run.metrics import MetricsWriter
from asyncrl.run.trackers import open as opening
from asyncrl.run.trackers.open import check_trackers, open_trackers
from asyncrl.run.trackers.prometheus import PrometheusEndpoint
from tests.support.launch import ROOT


def config(*overrides: str) -> Config:
    return load(None, ["model.path=none", "data.train=none", *overrides])


def scrape(port: int) -> dict[str, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return dict(line.split(" ") for line in lines if not line.startswith("#"))


def test_without_trackers_nothing_is_opened(tmp_path: Path) -> None:
    assert open_trackers(config("run.trackers=[]"), tmp_path, None) == []
    assert list(tmp_path.iterdir()) == []


def test_prometheus_sees_the_latest_value_of_each_figure(tmp_path: Path) -> None:
    (endpoint,) = open_trackers(config("run.trackers=[]", "run.prometheus_port=0"), tmp_path, None)
    assert isinstance(endpoint, PrometheusEndpoint)
    port = endpoint._server.server_port
    writer = MetricsWriter(tmp_path, [endpoint])
    assert scrape(port) == {}
    writer.write(1, {"reward/mean": 0.5, "eval/pass@8": 0.25, "staleness/histogram": [1, 2], "sample/train": "1+1=2"})
    writer.write(2, {"reward/mean": 0.75, "loss/total": math.nan})
    assert scrape(port) == {
        "asyncrl_step": "2.0",
        "asyncrl_reward_mean": "0.75",
        "asyncrl_eval_pass_8": "0.25",
        "asyncrl_loss_total": "NaN",
    }
    writer.close()
    with pytest.raises(OSError, match="refused"):
        scrape(port)


def test_a_prometheus_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"run.prometheus_port: cannot bind 127.0.0.1:{number}"):
            check_trackers(config(f"run.prometheus_port={number}").run)


@pytest.mark.parametrize(
    ("setting", "package", "extra"),
    [
        ("run.trackers=[wandb]", "wandb", "wandb"),
        ("run.trackers=[trackio]", "trackio", "trackio"),
        ("run.prometheus_port=9000", "prometheus_client", "prometheus"),
    ],
)
def test_a_tracker_whose_package_is_missing_is_refused_with_its_extra(
    setting: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_trackers(config(setting).run)
    monkeypatch.setattr(opening, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(ConfigError, match=rf"asyncrl\[{extra}\]"):
        check_trackers(config(setting).run)
    check_trackers(config().run)


def test_wandb_offline_gets_the_same_names_and_no_key_and_a_resumed_run_keeps_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "0123456789" * 4
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", key)
    for resume_after, steps in ((None, (0, 1)), (1, (2,))):
        writer = MetricsWriter(tmp_path, open_trackers(config("run.trackers=[wandb]"), tmp_path, resume_after))
        for step in steps:
            writer.write(step, {"reward/mean": step / 4, "staleness/histogram": [3, 1], "sample/train": "1+1=2"})
        writer.close()
        time.sleep(1.1)  # wandb names the folder of an offline run by the second
    records = [record for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")) for record in logged(file)]
    assert [record["step"] for record in records] == [0, 1, 2]
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and key.encode() in file.read_bytes()]
    assert [record["reward/mean"] for record in records] == [0.0, 0.25, 0.5]
    assert records[0]["staleness/histogram.values"] == [3, 1]
    assert len({file.stem for file in tmp_path.glob("wandb/offline-run-*/*.wandb")}) == 1


def test_trackio_gets_the_same_names_in_a_file_and_a_resumed_run_goes_on_with_its_own(tmp_path: Path) -> None:
    launch = """if True:
        import sys
        from pathlib import Path
        from asyncrl.run.metrics import MetricsWriter
        from asyncrl.run.trackers.open import open_trackers
        from tests.run.test_trackers import config
        run_dir, resume_after, *steps = [Path(sys.argv[1]), *map(int, sys.argv[2:])]
        run_dir.mkdir(exist_ok=True)
        writer = MetricsWriter(run_dir, open_trackers(config("run.trackers=[trackio]"), run_dir, resume_after or None))
        for step in steps:
            writer.write(step, {"reward/mean": step / 4, "staleness/histogram": [3, 1], "sample/train": "1+1=2"})
        writer.close()
    """
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    for resume_after, steps in ((0, ("0", "1")), (1, ("2",))):
        command = [sys.executable, "-c", launch, str(tmp_path / "run-a"), str(resume_after), *steps]
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout == ""
    with closing(sqlite3.connect(tmp_path / "trackio" / "asyncrl.db")) as db:
        rows = db.execute("SELECT run_id, run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert [(name, step) for _, name, step, _ in rows] == [("run-a", 0), ("run-a", 1), ("run-a", 2)]
    assert len({run_id for run_id, *_ in rows}) == 1
    metrics = [json.loads(row[-1]) for row in rows]
    assert [row["reward/mean"] for row in metrics] == [0.0, 0.25, 0.5]
    assert metrics[0]["sample/train"] == "1+1=2"
    assert metrics[0]["staleness/histogram"]["values"] == [3, 1]


def logged(file: Path) -> list[dict]:
    """The rows that `wandb sync` would upload: LevelDB's log of short records, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, rows = file.read_bytes(), 7, []
    while position < len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        assert kind == 1, "a record in several parts"
        record = Record()
        record.ParseFromString(data[position + 7 : position + 7 + length])
        position += 7 + length
        if record.HasField("history"):
            items = record.history.item
            rows.append({".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
    return rows
