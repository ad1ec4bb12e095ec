"""The update of every diffusion sampler as one fused kernel: a CPU twin, and CUDA code where it was built beside nvcc.

edgediff finds this package by itself and uses it in place of NumPy; nothing here needs to be called by hand.
"""

from ._kernels import (
    ABI,
    BAD_OUTPUT,
    BAD_PIXELS,
    BAD_STATE,
    HEADER_BYTES,
    HEADER_FIELDS,
    MAX_HISTORY,
    NOT_BAD,
    ROW_BYTES,
    ROW_FIELDS,
    STATE_BYTES,
    STATE_FIELDS,
    Update,
    normals,
    to_uint8,
    unscale,
    update,
)

__version__ = "0.2.0"
__all__ = [
    "ABI",
    "BAD_OUTPUT",
    "BAD_PIXELS",
    "BAD_STATE",
    "HEADER_BYTES",
    "HEADER_FIELDS",
    "MAX_HISTORY",
    "NOT_BAD",
    "ROW_BYTES",
    "ROW_FIELDS",
    "STATE_BYTES",
    "STATE_FIELDS",
    "Update",
    "normals",
    "to_uint8",
    "unscale",
    "update",
]
