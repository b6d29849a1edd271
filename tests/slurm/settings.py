"""What the daemons of the cluster read: as in production, but for the times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

GPUS_PER_NODE = 2
_SETTINGS = """
ClusterName=test
SlurmctldHost=head
SlurmUser=root
AuthType=auth/munge
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
SlurmdTimeout=10
SlurmctldTimeout=10
InactiveLimit=0
MessageTimeout=5
CompleteWait=0
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=2,bf_resolution=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageHost=head
GresTypes=gpu
""".strip().splitlines()


def slurm_conf(
    folder: Path,
    names: Sequence[str],
    *,
    has_user_signal: bool,
    has_accounting: bool,
    grace_s: int,
) -> str:
    """The text of slurm.conf. Jobs of `low` are preempted by jobs of `high`: warned by their own
    signal (`--signal`) or by SIGTERM alone, `grace_s` before they are killed."""
    parameters = "preempt_send_user_signal" if has_user_signal else "idle_on_node_suspend"
    storage = "slurmdbd" if has_accounting else "none"
    has_cgroups = Path("/sys/fs/cgroup/freezer").is_dir()
    nodes = ",".join(names)
    lines = [
        *_SETTINGS,
        f"AuthInfo=socket={folder}/munge/munge.sock,cred_expire=5",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool/%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd.%n.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"SlurmdLogFile={folder}/log/slurmd.%n.log",
        f"SlurmctldParameters={parameters}",
        f"ProctrackType=proctrack/{'cgroup' if has_cgroups else 'linuxproc'}",
        f"AccountingStorageType=accounting_storage/{storage}",
        f"AccountingStoragePass={folder}/munge/munge.sock",
        "NodeName=DEFAULT CPUs=4 RealMemory=64000",
        f"NodeName={nodes} Gres=gpu:{GPUS_PER_NODE}",
        f"PartitionName=low Nodes={nodes} Default=YES PriorityTier=1 GraceTime={grace_s} "
        "MaxTime=INFINITE",
        f"PartitionName=fragile Nodes={nodes} PriorityTier=1 PreemptMode=CANCEL MaxTime=INFINITE",
        f"PartitionName=high Nodes={nodes} PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE",
        f"PartitionName=down Nodes={nodes} State=DOWN MaxTime=INFINITE",
    ]
    return "\n".join(lines) + "\n"


def write_other_files(folder: Path) -> None:
    """What Slurm reads besides slurm.conf."""
    devices = f"{folder}/dev/gpu[0-{GPUS_PER_NODE - 1}]"
    (folder / "gres.conf").write_text(f"Name=gpu File={devices}\n")
    (folder / "cgroup.conf").write_text(
        "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nConstrainCores=no\n"
        "ConstrainRAMSpace=no\n"
    )
    accounting = folder / "slurmdbd.conf"
    accounting.write_text(
        "AuthType=auth/munge\n"
        f"AuthInfo=socket={folder}/munge/munge.sock\n"
        "DbdHost=head\nSlurmUser=root\nStorageType=accounting_storage/mysql\n"
        "StorageHost=127.0.0.1\nStoragePort=3306\nStorageUser=root\nStorageLoc=slurm_acct\n"
        f"LogFile={folder}/log/slurmdbd.log\nPidFile={folder}/slurmdbd.pid\n"
    )
    accounting.chmod(0o600)
