"""Settings of all tests. The environment is set here, before torch is imported."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork of a process with an OpenMP pool would deadlock
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import HealthCheck, settings

# No test asserts wall time: a busy machine must not fail one.
settings.register_profile("asyncrl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("asyncrl")
