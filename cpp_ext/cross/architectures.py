"""Lists the machine code and the PTX in a file that nvcc made: what `cuobjdump -lelf -lptx` says, without CUDA."""

import struct
import sys
from pathlib import Path

MAGIC = struct.pack("<I", 0xBA55ED50)  # of a "fatbin": a header of 16 bytes, then entries, each with its own header
KINDS = {1: "compute_", 2: "sm_"}


def architectures(data: bytes) -> list[str]:
    found = []
    start = data.find(MAGIC)
    while start >= 0:
        version, header, size = struct.unpack_from("<HHQ", data, start + 4)
        end = start + header + size
        if version == 1 and header == 16 and end <= len(data):  # else the number is there by chance
            entry = start + header
            while entry < end:
                kind, _, header, size = struct.unpack_from("<HHIQ", data, entry)
                (architecture,) = struct.unpack_from("<I", data, entry + 28)
                found.append(f"{KINDS.get(kind, 'unknown kind ')}{architecture}")
                entry += header + size
        start = data.find(MAGIC, start + 4)
    return found


if __name__ == "__main__":
    print(*architectures(Path(sys.argv[1]).read_bytes()))
