"""How the C library returns memory to the operating system."""

import ctypes
import sys


def keep_freed_memory() -> bool:
    """Keep freed memory in this process, for the next tensor of that size. Returns whether the C library is glibc.

    By default glibc requests the memory of every large tensor from the system and returns it when the tensor is freed.
    Each training step then touches new pages, which took a sixth of a small Transformer's time on the CPU. The peak
    stays that of the tensors alive at one time; memory that is freed below the peak is not returned.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    most, most_once = 2**31 - 1, 2**25  # older glibc refuses to raise the second above 32 MiB
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    # Setting either one stops glibc from adjusting both, so the trimming is not set where the mapping cannot be.
    if mallopt is None or not (mallopt(mmap_threshold, most) or mallopt(mmap_threshold, most_once)):
        return False
    return bool(mallopt(trim_threshold, most))
