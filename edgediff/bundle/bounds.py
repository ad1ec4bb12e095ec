"""What a manifest, or a file that it names, holds at most. Real ones stay far below; what goes beyond is refused.

``bundle.schema.json`` says the same of the manifest; a test holds both together.
"""

from __future__ import annotations

from collections.abc import Mapping

Bounds = Mapping[str, tuple[float, float]]  # the least and the most of a number, by its name

MAX_MANIFEST = 1 << 20  # bytes; the built-in model's has 7 kB, and names of nodes kept in fp32 are what grows
MAX_CONFIG = 2 << 20  # bytes of another exporter's config.json and its like, which have a few kB
MAX_DEPTH = 32  # objects and lists inside each other; parity's reach 4
MAX_TEXT = 65_536  # characters of any text; the OFL licence has 4,300
MAX_NAME = 1_000  # characters of a name and of a path
MAX_BYTES = 1 << 50  # of a file

MAX_FILES = 64  # of one part; an export writes 3
MAX_WORDS = 256  # textual inversions that travel along; each is read when the first prompt is
MAX_TENSORS = 128  # inputs, or outputs, of one part; a text encoder gives a state for each of its layers
MAX_SIDE = 1 << 24  # of a tensor
MAX_PICTURES = 16  # golden ones; an export draws 2
MAX_CALLS = 64  # golden ones of one part; an export keeps 3
MAX_GOLDEN = 256 << 20  # bytes of golden tensors; the built-in model's has 0.5 MB
MAX_GOLDEN_VALUES = 1 << 24  # of one golden tensor; a picture of 2048 x 2048 has 12.6 million

MAX_SIZE = 16_384  # pixels a side; beyond it a typing error is likelier than a wish
PREVIEW = 1e6  # of the linear preview's numbers, either way; fitted ones stay below 10
CLIP_SAMPLE = (1e-3, 1e4)  # of x0; 1 is known
FLOOR = (0.0, 1_000.0)  # decibels; 99 stands for equal pictures
PARITY = (0.0, 1e6)  # of errors: relative, absolute, and the ceiling

LATENT: Bounds = {
    "channels": (1, 1_024),  # 4 to 128 are known
    "factor": (1, 256),  # 8 to 64 are known
    "scale": (1e-3, 1e3),  # 0.13 to 1.53 are known
    "shift": (-1e3, 1e3),  # 0.06 to 0.12 are known
    "size_multiple": (1, MAX_SIZE),
}
DEFAULTS: Bounds = {
    "width": (1, MAX_SIZE),
    "height": (1, MAX_SIZE),
    "num_inference_steps": (1, 1_000),  # models of pixels were published with as many as they were trained on
    "guidance_scale": (-1_000, 1_000),  # as plans take them
}
SCHEDULE: Bounds = {
    "num_train_timesteps": (2, 100_000),  # nearly everybody trains on 1,000
    "steps_offset": (0, 100_000),
    "original_inference_steps": (1, 100_000),
    "timestep_scaling": (1e-6, 1e6),  # 10 is known
    "shift": (0.01, 100),
    "lambda_min_clipped": (-1e3, 1e3),  # -5.1 is known
}
TEXT: Bounds = {
    "max_length": (3, 4_096),  # CLIP's read 77, T5's 512
    "pad_id": (0, 2**31 - 1),
}
FILE: Bounds = {"size": (0, MAX_BYTES)}
