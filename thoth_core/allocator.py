"""How the C library gives memory back to the system."""

import ctypes
import sys


def keep_freed_memory() -> bool:
    """Let freed memory stay with this process, for the next tensor of that size; True if the C library is glibc.

    By default glibc asks the system for every large tensor and gives it back when that is freed: each training
    step then touches its pages for the first time, which took a sixth of a small Transformer's time on the CPU. The
    peak is that of the tensors alive at one time, as before; what is freed below the peak is not returned.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    most, most_once = 2**31 - 1, 2**25  # older glibc refuses to raise the second above 32 MiB
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    # Either one ends glibc's own adjusting of both: the trimming is left alone where the mapping cannot be changed.
    if mallopt is None or not (mallopt(mmap_threshold, most) or mallopt(mmap_threshold, most_once)):
        return False
    return bool(mallopt(trim_threshold, most))
