"""A part's ONNX file, and the weights beside it that it names, are held against the manifest before an engine reads."""

from __future__ import annotations

from pathlib import Path

from ..errors import BundleError, shown
from .manifest import HASH_LIMIT, WEIGHTS, Bundle, File
from .onnx_file.locations import check_graph


def graph_path(bundle: Bundle, part: str, file: File) -> Path:
    """The path of a part's graph, after it and all weights that it names were found to be what the manifest lists.

    Raises:
        BundleNotFoundError: no such file.
        BundleError: another size or checksum than the manifest's; weights that it does not list for this part, or that
            are shorter than the graph reads; what ``check_graph`` refuses.
    """
    path = bundle.path(part, file, hashed=file.size <= HASH_LIMIT)
    try:
        needed = check_graph(bundle.root, path)[1]
    except BundleError as error:
        raise BundleError(f"bundle {shown(bundle.name)}: {part}: {error}") from error
    listed = {data.path: data for data in bundle.parts[part].files if data.engine == WEIGHTS}
    for name, size in needed.items():
        if (data := listed.get(name)) is None:
            raise BundleError(
                f"bundle {shown(bundle.name)}: {part}: {file.path} keeps weights in {shown(name)}, which the manifest "
                f"does not list as {WEIGHTS} of the part"
            )
        if size > data.size:
            raise BundleError(
                f"bundle {shown(bundle.name)}: {part}: {file.path} reads {name} up to byte {size}; it has {data.size}"
            )
        bundle.path(part, data, hashed=data.size <= HASH_LIMIT)
    return path
