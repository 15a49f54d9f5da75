"""What the C library does with the room of buffers that are let go of."""

import ctypes
import os
from typing import Final

# Of <malloc.h> of glibc; see mallopt(3). Once one is set, none follows what the process does any more.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
LARGE_BYTES: Final = 8 << 20  # a buffer of this size goes back to the system; blocks and messages are smaller
KEPT_BYTES: Final = 16 << 20  # that lie free before any goes back


def keep_buffers() -> bool:
    """Keep the room of blocks and messages that are through for those that come next.

    By default glibc gives it back and takes it anew page by page, which costs a transfer a tenth of its time. Returns:
    whether that could be said: other C libraries have their own ways, and what the user has set in the environment
    (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_) stays.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None or {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return False
    return bool(set_option(_MMAP_THRESHOLD, LARGE_BYTES) and set_option(_TRIM_THRESHOLD, KEPT_BYTES))
