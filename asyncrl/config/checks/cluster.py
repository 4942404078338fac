"""Checks of `cluster.*` that need no cluster."""

from __future__ import annotations

from asyncrl.config.schema import ClusterConfig, Config


def cluster_problems(cluster: ClusterConfig) -> list[str]:
    if cluster.ray_address is not None:
        return []
    problems = []
    if cluster.allow_open_ray:
        problems.append(
            "cluster.allow_open_ray=true is for a cluster to join, and cluster.ray_address=null; leave it out"
        )
    if cluster.interface is not None:
        problems.append(
            f"cluster.interface={cluster.interface} is for a cluster to join; with cluster.ray_address=null everything "
            "stays on loopback; leave it out"
        )
    return problems


def cluster_warnings(config: Config) -> list[str]:
    warnings = []
    if config.cluster.share_gpu and config.generator.gpu_memory_utilization > 0.6:
        warnings.append(
            f"generator.gpu_memory_utilization={config.generator.gpu_memory_utilization} with cluster.share_gpu=true "
            "leaves the learner little memory; 0.4 is a start"
        )
    if config.cluster.allow_open_ray:
        warnings.append(
            f"cluster.allow_open_ray=true: if the Ray at {config.cluster.ray_address} asks for no token, whoever "
            "reaches its ports can run code as you (docs/security.md)"
        )
    return warnings
