"""The launcher's Prometheus endpoint: http://127.0.0.1:PORT/metrics has the latest value of each figure.

`reward/mean` is the gauge `asyncrl_reward_mean`: Prometheus knows no `/` in names. Histograms and texts are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from asyncrl.errors import ConfigError
from asyncrl.run.trackers.base import MetricValue

HOST = "127.0.0.1"


class PrometheusEndpoint:
    """Answers scrapes from a thread of its own.

    Raises:
        ConfigError: the port is in use.
    """

    def __init__(self, port: int) -> None:
        from prometheus_client import CollectorRegistry, start_http_server
        from prometheus_client.core import GaugeMetricFamily

        self._gauge: Any = GaugeMetricFamily
        self._latest: dict[str, float] = {}
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, HOST, registry)
        except OSError as error:
            raise ConfigError(
                f"run.prometheus_port: cannot bind {HOST}:{port}: {error.strerror}; choose another port"
            ) from error

    def write(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
        self._latest = {**self._latest, "step": float(step), **numbers}  # a new one: a scrape may read the old one

    def collect(self) -> Iterator[Any]:
        """For prometheus_client, at each scrape."""
        for key, value in self._latest.items():
            yield self._gauge(f"asyncrl_{re.sub('[^a-zA-Z0-9_]', '_', key)}", key, value=value)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
