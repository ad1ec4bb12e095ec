"""What an ONNX file says of its graph: inputs, outputs, operators. Weights are skipped, however large they are."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from ...errors import BundleError, BundleNotFoundError, shown
from ...files import open_regular
from ...looks import look_at
from .header import GraphHeader, Port
from .protobuf import BYTES, MAX_VARINT, Field, WireError, fields, text

# Field numbers of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
MODEL_PRODUCER, MODEL_GRAPH, MODEL_OPSET, MODEL_TRAINING, MODEL_FUNCTION = 2, 7, 8, 20, 25
NODE, INITIALIZER, INPUT, OUTPUT, SPARSE = 1, 5, 11, 12, 15
NODE_OPERATOR, NODE_ATTRIBUTE, NODE_DOMAIN, FUNCTION_NODE, FUNCTION_DEFAULT = 4, 5, 7, 7, 11
ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS, ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)  # one, and a list of them
TENSOR_DIM, TENSOR_TYPE, TENSOR_NAME, TENSOR_EXTERNAL = 1, 2, 8, 13
TYPES = {1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
         11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16"}  # fmt: skip
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16}  # a value
MAX_DEPTH = 16  # of graphs inside nodes
MAX_RANK = 64  # dimensions of a tensor; NumPy has no more
MAX_ENTRIES = 2_000_000  # fields in all; the U-Net of SD 1.5 has 43,659 as optimum-onnx 0.1.0 writes it


def read_header(path: Path) -> GraphHeader:
    """Read the header of an ONNX file.

    Raises:
        BundleNotFoundError: no such file.
        BundleError: it cannot be read, or is no ONNX file; the message says what it is, where that can be told.
    """
    try:
        if not path.is_file():
            raise BundleNotFoundError(f"{path} is missing")
        with open_regular(path) as file:
            reader = _Reader(file)
            try:
                header = reader.model(os.fstat(file.fileno()).st_size)
            except WireError as error:
                raise BundleError(f"{path} is not an ONNX file: {_why(path) or error}") from error
    except OSError as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    if not header.outputs:
        raise BundleError(f"{path} is not an ONNX file: {_why(path) or 'it holds no graph'}")
    return header


def _why(path: Path) -> str:
    look = look_at(path)
    return "" if look is None or look.kind == "onnx" else f"it is {look.says}"


class _Reader:
    """A reader walks one file, and counts what it reads, so that no file takes unbounded time."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.count = 0
        self.header = GraphHeader()

    def fields(self, start: int, end: int) -> Iterator[Field]:
        for one in fields(self.file, start, end):
            self.count += 1
            if self.count > MAX_ENTRIES:
                raise WireError(f"it has more than {MAX_ENTRIES} fields")
            yield one

    def inner(self, one: Field) -> Iterator[Field]:
        """The fields of a field that is a message itself."""
        if one.wire != BYTES:
            raise WireError("a number stands where a message belongs")
        return self.fields(one.start, one.end)

    def model(self, size: int) -> GraphHeader:
        for one in self.fields(0, size):
            if one.number == MODEL_GRAPH:
                self.graph(one, 0)
            elif one.number == MODEL_OPSET:
                self.opset(one)
            elif one.number == MODEL_PRODUCER:
                self.header.producer = text(self.file, one)
            elif one.number == MODEL_FUNCTION:
                self.function(one)
            elif one.number == MODEL_TRAINING:
                for graph in self.inner(one):
                    if graph.number in (1, 2):
                        self.graph(graph, 1)
        return self.header

    def opset(self, message: Field) -> None:
        domain, version = "", 0
        for one in self.inner(message):
            domain = text(self.file, one) if one.number == 1 else domain
            version = one.value if one.number == 2 else version
        self.header.opsets[domain] = version

    def function(self, message: Field) -> None:
        for one in self.inner(message):
            if one.number == 1:
                self.header.functions.add(text(self.file, one))
            elif one.number == FUNCTION_NODE:
                self.node(one, 0)
            elif one.number == FUNCTION_DEFAULT:
                self.attribute(one, 0)

    def graph(self, message: Field, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise WireError(f"graphs lie in graphs, more than {MAX_DEPTH} deep")
        inputs: list[Port] = []
        outputs: list[Port] = []
        defaults: set[str] = set()
        for one in self.inner(message):
            if one.number == NODE:
                self.node(one, depth)
            elif one.number == INITIALIZER:
                defaults.add(self.tensor(one))
            elif one.number == SPARSE:
                self.sparse(one)
            elif one.number in (INPUT, OUTPUT) and depth == 0:
                (inputs if one.number == INPUT else outputs).append(self.port(one))
        if depth == 0:
            self.header.inputs = tuple(port for port in inputs if port.name not in defaults)
            self.header.outputs = tuple(outputs)

    def node(self, message: Field, depth: int) -> None:
        domain = operator = ""
        for one in self.inner(message):
            if one.number == NODE_OPERATOR:
                operator = text(self.file, one)
            elif one.number == NODE_DOMAIN:
                domain = text(self.file, one)
            elif one.number == NODE_ATTRIBUTE:
                self.attribute(one, depth)
        self.header.operators.add((domain, operator))

    def attribute(self, message: Field, depth: int) -> None:
        for one in self.inner(message):
            if one.number in ATTRIBUTE_GRAPHS:
                self.graph(one, depth + 1)
            elif one.number in ATTRIBUTE_TENSORS:
                self.tensor(one)
            elif one.number in ATTRIBUTE_SPARSE:
                self.sparse(one)

    def sparse(self, message: Field) -> None:
        for half in self.inner(message):
            if half.number in (1, 2):  # values and indices
                self.tensor(half)

    def tensor(self, message: Field) -> str:
        """Note where a tensor's values lie, and return its name. The values themselves are skipped."""
        name, kind, count, rank = "", 0, 1, 0
        outside: dict[str, str] = {}
        for one in self.inner(message):
            if one.number == TENSOR_NAME:
                name = text(self.file, one)
            elif one.number == TENSOR_TYPE:
                kind = one.value
            elif one.number == TENSOR_DIM:
                dims = [one.value] if one.wire != BYTES else self.packed(one)
                if (rank := rank + len(dims)) > MAX_RANK:
                    raise WireError(f"a tensor has more than {MAX_RANK} dimensions")
                count *= math.prod(dims)
            elif one.number == TENSOR_EXTERNAL:
                key, value = self.entry(one)
                if key in outside:
                    raise WireError(f"a tensor says twice what its {shown(key)} is")
                outside[key] = value
        if kind in TYPES:
            self.header.weights[TYPES[kind]] = self.header.weights.get(TYPES[kind], 0) + count
        if outside:
            self.external(outside, count * BITS.get(kind, 0) // 8)
        return name

    def packed(self, one: Field) -> list[int]:
        """Read the dimensions of a writer that packs them."""
        if one.end - one.start > MAX_RANK * MAX_VARINT:
            raise WireError(f"a tensor has more than {MAX_RANK} dimensions")
        self.file.seek(one.start)
        out, value, shift = [], 0, 0
        for byte in self.file.read(one.end - one.start):
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                out.append(value)
                value = shift = 0
        return out

    def entry(self, message: Field) -> tuple[str, str]:
        """Read one fact about values that lie in another file: its name and what it is."""
        key = value = ""
        for one in self.inner(message):
            key = text(self.file, one) if one.number == 1 else key
            value = text(self.file, one) if one.number == 2 else value
        return key, value

    def external(self, facts: Mapping[str, str], size: int) -> None:
        """Note the file that holds a tensor of ``size`` bytes (0: not known), and how far it is read."""
        offset, length = (self.whole(facts, key) for key in ("offset", "length"))
        name = facts.get("location", "")
        end = offset + max(length, size)
        self.header.external[name] = max(self.header.external.get(name, 0), end)

    @staticmethod
    def whole(facts: Mapping[str, str], key: str) -> int:
        value = facts.get(key, "0")
        if not (value.isascii() and value.isdigit() and len(value) <= 18):
            raise WireError(f"the {key} of a tensor's values is {shown(value)}; it must be a number")
        return int(value)

    def port(self, message: Field) -> Port:
        name, dtype = "", "?"
        shape: tuple[int | str, ...] = ("?",)
        for one in self.inner(message):
            if one.number == 1:
                name = text(self.file, one)
            elif one.number == 2:
                for kind in self.inner(one):
                    if kind.number == 1:
                        dtype, shape = self.tensor_type(kind)
        return Port(name, dtype, shape)

    def tensor_type(self, message: Field) -> tuple[str, tuple[int | str, ...]]:
        dtype = "?"
        shape: list[int | str] = []
        for one in self.inner(message):
            if one.number == 1:
                dtype = TYPES.get(one.value, f"type {one.value}")
            elif one.number == 2:
                for dim in self.inner(one):
                    size: int | str = "?"
                    for part in self.inner(dim):
                        if part.number == 1:
                            size = part.value if part.value < 1 << 63 else "?"  # below 0 stands for any
                        elif part.number == 2:
                            size = text(self.file, part)
                    shape.append(size)
        return dtype, tuple(shape)
