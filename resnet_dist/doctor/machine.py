"""Checks of one machine by itself: versions, cores, memory, limits, its name."""

from __future__ import annotations

import importlib.metadata
import os
import re
import resource
import shutil
import socket
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from resnet_dist.config import CORES_PER_GPU, Config
from resnet_dist.data.loaders.choice import choose_loader
from resnet_dist.data.micro_batches import choose_batch_split
from resnet_dist.doctor.finding import Finding, fail, ok, warn
from resnet_dist.errors import UserError
from resnet_dist.run import dali_package
from resnet_dist.run.versions import package_versions
from resnet_dist.world import World, threads_per_rank

_OPEN_FILES = 4096
_GIB = 2**30
_BATCHES_AHEAD = 3
"""Batches of a worker that may lie in shared memory."""


def machine_findings(config: Config, world: World) -> list[Finding]:
    """All checks of this machine that need no other one."""
    return [
        *_versions(),
        *_driver(config, world),
        *_cores(config, world),
        *_memory(world),
        *_shared_memory(config, world),
        *_open_files(),
        *_host_name(world),
    ]


def _versions() -> list[Finding]:
    """Whether installed packages fit each other, by what they declare."""
    clashes = []
    for package in ("torch", "torchvision", "resnet_dist"):
        clashes += requirement_clashes(package)
    if clashes:
        return [fail("versions", "; ".join(clashes), "install what requirements.lock says")]
    found = package_versions()
    names = ("python", "torch", "torchvision", "numpy", "resnet_dist")
    return [ok("versions", ", ".join(f"{name} {found[name]}" for name in names))]


def requirement_clashes(package: str) -> list[str]:
    """Declared requirements of a package that the installed versions do not meet."""
    try:
        declared = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return [] if package == "resnet_dist" else [f"{package} is not installed"]
    clashes = []
    for each in map(Requirement, declared):
        if each.marker is not None and not each.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(each.name)
        except importlib.metadata.PackageNotFoundError:
            clashes.append(f"{package} needs {each.name}, which is not installed")
            continue
        if not each.specifier.contains(version, prereleases=True):
            clashes.append(f"{package} needs {each.name}{each.specifier}, and {version} is there")
    return clashes


def _driver(config: Config, world: World) -> list[Finding]:
    """Whether torch and DALI can use the GPUs that the machine has."""
    has_tool = shutil.which("nvidia-smi") is not None
    if world.device.type == "cpu" and config.dist.device != "cpu" and has_tool:
        return [
            fail(
                "driver",
                f"nvidia-smi is there, but torch {torch.__version__} sees no GPU",
                f"torch is for CUDA {torch.version.cuda}: compare with nvidia-smi's CUDA version, "
                f"and look at CUDA_VISIBLE_DEVICES",
            )
        ]
    if world.device.type == "cpu":
        return [ok("driver", "no GPU: training on the CPU")]
    driver = dali_package.driver_version()
    clash = dali_package.conflict(driver, torch.version.cuda)
    if clash is not None and choose_loader(config.data, world.device) == "dali":
        return [fail("DALI", clash)]
    return [ok("driver", f"CUDA {torch.version.cuda} of torch runs; DALI {dali_package.version()}")]


def _cores(config: Config, world: World) -> list[Finding]:
    cores = len(os.sched_getaffinity(0))
    share = threads_per_rank(world.local_size)
    workers = config.data.num_workers or share
    what = f"{cores} core(s) for {world.local_size} rank(s), {workers} loader worker(s) each"
    if cores < world.local_size:
        return [fail("cores", what, "start fewer ranks, or ask for more cores (--cpus-per-task)")]
    if world.device.type == "cuda" and share < CORES_PER_GPU:
        remedy = f"ask for at least {CORES_PER_GPU} cores per GPU (--cpus-per-task)"
        return [warn("cores", what, remedy)]
    if workers > share:
        return [warn("cores", what, f"data.num_workers={share} is this rank's share")]
    return [ok("cores", what)]


def _memory(world: World) -> list[Finding]:
    available = psutil.virtual_memory().available
    limit = _cgroup_limit()
    room = available if limit is None else min(available, limit)
    what = f"{room / _GIB:.1f} GiB for {world.local_size} rank(s)"
    if room < 2 * _GIB * world.local_size:
        return [warn("memory", what, "2 GiB per rank are usual; ask for more (--mem)")]
    return [ok("memory", what)]


def _cgroup_limit() -> int | None:
    """What a container or a job may still take."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return None if limit == "max" else max(0, int(limit) - used)
    except (OSError, ValueError):
        return None


def _shared_memory(config: Config, world: World) -> list[Finding]:
    """Loader workers hand over batches in /dev/shm; containers have 64 MiB there."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return [fail("shared memory", "/dev/shm is missing", "mount a tmpfs there")]
    size = config.data.train_size
    try:
        images = choose_batch_split(config.train, world.size).largest_micro_batch
    except UserError:  # a finding of its own
        images = -(-config.train.global_batch_size // world.size)
    workers = config.data.num_workers or threads_per_rank(world.local_size)
    needed = 3 * size * size * images * _BATCHES_AHEAD * workers * world.local_size
    free = shutil.disk_usage(folder).free
    what = f"{free / _GIB:.2f} GiB free in /dev/shm, {needed / _GIB:.2f} GiB may be used"
    if free < needed:
        return [fail("shared memory", what, "docker: --shm-size=16g; or fewer data.num_workers")]
    return [ok("shared memory", what)]


def _open_files() -> list[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    what = f"{soft} at once"
    if soft < _OPEN_FILES:
        more = hard if hard != resource.RLIM_INFINITY else 65536
        return [warn("open files", what, f"ulimit -n {max(more, _OPEN_FILES)}")]
    return [ok("open files", what)]


def _host_name(world: World) -> list[Finding]:
    """Other ranks find this one by its name."""
    name = socket.gethostname()
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(name, None)}
    except OSError as error:
        remedy = "mend /etc/hosts or the name server, or set GLOO_SOCKET_IFNAME"
        what = f"{name} is not resolved ({error})"
        return [(fail if world.size > 1 else warn)("host name", what, remedy)]
    shown = sorted(addresses)[0]
    is_local = all(re.match(r"127\.|::1$", address) for address in addresses)
    if is_local and world.size > world.local_size:
        remedy = "give the name its real address in /etc/hosts, or set GLOO_SOCKET_IFNAME"
        return [warn("host name", f"{name} is {shown}, which other hosts cannot reach", remedy)]
    return [ok("host name", f"{name} is {shown}")]
