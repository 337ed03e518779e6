"""Checks that a tensor fits into memory, before it is allocated."""

import os
from pathlib import Path

import torch

from thoth_core.errors import UserError

# The container's limit and usage, of version 2 and 1 of Linux's control groups.
CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def available(device: torch.device) -> int | None:
    """Free bytes on the device: the machine's, and on the CPU the container's; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(1024 * int(line.split()[1]))
    except OSError:
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for folder, limit, usage in CGROUPS:
        try:
            most, used = ((Path(folder) / name).read_text(encoding="ascii").strip() for name in (limit, usage))
            if most != "max":
                limits.append(int(most) - int(used) + _file_cache(Path(folder)))
        except (OSError, ValueError):
            continue
    return max(0, min(limits)) if limits else None


def _file_cache(folder: Path) -> int:
    """Bytes that count as used although the system reclaims them when they are needed."""
    lines = (line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    return sum(int(size) for name, size in lines if name in ("active_file", "inactive_file"))


def check_room(size: int, device: torch.device, what: str) -> None:
    """Raise UserError if ``size`` bytes for ``what`` exceed the available memory of the device."""
    room = available(device)
    if room is not None and size > room:
        raise UserError(
            f"{what} would take {size / 1e9:,.2f} GB, but {device} has {room / 1e9:,.2f} GB available; "
            "lower --memory-keys or --memory-value-dim, or share the table between processes (--memory-sharded)"
        )
