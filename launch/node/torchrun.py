"""The start of torchrun on a node: its command line, and the environment of its workers."""

from __future__ import annotations

import os
import sys

from launch.cluster.options import ClusterConfig
from launch.node.preflight import wants_gpus
from launch.node.task import SlurmTask
from launch.records.attempt import AttemptName
from resnet_dist.config import Config


def worker_environment(
    cluster: ClusterConfig, *, job: str, code: str, visible_devices: str | None
) -> dict[str, str]:
    """The environment of torchrun and its workers.

    `job`: what all attempts of a submission have in common; `code`: folder of the packages.
    """
    environment = {**os.environ, **cluster.env}
    paths = [code, environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment["RESNET_DIST_JOB"] = job
    environment["RESNET_DIST_STOPPED_EXIT_CODE"] = "0"
    # Each start gets a store of its own: restarted workers would look for the ended ones
    # (pytorch issue 135712).
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # torchrun's own default, which it announces in each log; the trainer sets its threads itself.
    environment.setdefault("OMP_NUM_THREADS", "1")
    if visible_devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible_devices
        # Its numbers are nvidia-smi's; by itself CUDA counts the fastest GPU first.
        environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if cluster.network_interface:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            environment[name] = cluster.network_interface
    return environment


def torchrun_arguments(cluster: ClusterConfig, task: SlurmTask, name: AttemptName) -> list[str]:
    """torchrun's options on this node."""
    rendezvous = {
        "is_host": int(task.node == 0),
        "join_timeout": cluster.rendezvous_timeout_s,
        "timeout": cluster.rendezvous_timeout_s,
    }
    return [
        f"--nnodes={len(task.hosts)}",
        f"--nproc-per-node={cluster.num_ranks_per_node}",
        f"--max-restarts={cluster.max_restarts}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={task.hosts[0]}:{task.port}",
        f"--rdzv-id={name.launch_id(task.job_id)}",
        "--rdzv-conf=" + ",".join(f"{key}={value}" for key, value in rendezvous.items()),
        f"--local-addr={task.host}",
    ]


def trainer_overrides(cluster: ClusterConfig, task: SlurmTask, config: Config) -> list[str]:
    """Settings that the job insists on."""
    overrides = [f"dist.world_size={len(task.hosts) * cluster.num_ranks_per_node}"]
    if wants_gpus(cluster, config):
        overrides.append("dist.device=cuda")
    return overrides


def agent_command(run_dir: str, task: SlurmTask, name: AttemptName) -> list[str]:
    """The command that takes torchrun's arguments (`launch.node.agent`)."""
    module = "launch.node.agent"
    return [sys.executable, "-u", "-m", module, run_dir, str(name), str(task.node)]
