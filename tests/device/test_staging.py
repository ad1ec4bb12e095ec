"""Uploads go through pinned memory, which the GPU may read late."""

from __future__ import annotations

import ctypes

import numpy as np

from edgediff.device.cuda import CudaDevice
from edgediff.device.cuda.staging import SEGMENT, SEGMENTS, SMALL

from .stub.library import Stub
from .stub.on_stub import on_stub


@on_stub()
def test_what_is_uploaded_may_change_and_go_at_once(stub: Stub) -> None:
    device = CudaDevice()
    stub.late()
    expected = [np.full(1000, k, np.float32) for k in range(20)]
    places = [device.allocate(4000) for _ in expected]
    header = np.empty(1000, np.float32)
    for k, (place, values) in enumerate(zip(places, expected, strict=True)):
        header[:] = values
        device.upload(place, header if k % 2 else values.astype(np.float64).astype(np.float32))
    header[:] = np.nan
    for place, values in zip(places, expected, strict=True):
        out = np.empty(1000, np.float32)
        device.download(place, out)
        np.testing.assert_array_equal(out, values)
    device.close()
    assert not stub.faults


@on_stub()
def test_every_copy_is_from_pinned_memory(stub: Stub) -> None:
    device = CudaDevice()
    address = device.allocate(3 * SEGMENT)
    stub.clear()
    for size in (1, SMALL, SMALL + 1, 3 * SEGMENT):
        device.upload(address, np.zeros(size, np.uint8))
    copies = [call for call in stub.calls if call.name == "cuMemcpyHtoDAsync"]
    assert {call.details["pinned"] for call in copies} == {"1"}
    assert sum(int(call.details["size"]) for call in copies) == 1 + SMALL + SMALL + 1 + 3 * SEGMENT
    device.close()


@on_stub()
def test_more_than_the_ring_holds_goes_in_pieces_round_and_round(stub: Stub) -> None:
    device = CudaDevice()
    stub.late()
    rng = np.random.default_rng(0)
    sizes = (7, SMALL, 3 * SEGMENT + 5, 100, SMALL + 1, SEGMENTS * SEGMENT * 2 + 1, SEGMENT, 1)
    sent = {size: rng.integers(0, 256, size, np.uint8) for size in sizes}
    places = {size: device.allocate(size) for size in sizes}
    for size in sizes:
        device.upload(places[size], sent[size])
    for size in sizes:
        out = np.empty(size, np.uint8)
        device.download(places[size], out)
        np.testing.assert_array_equal(out, sent[size])
    device.close()
    assert not stub.faults


@on_stub()
def test_any_layout_of_values_is_copied_in_c_order(stub: Stub) -> None:
    device = CudaDevice()
    address = device.allocate(1 << 20)
    large = np.arange(200 * 300, dtype=np.float32).reshape(200, 300)
    rows = np.ones(3, [("a", np.float32), ("w", np.float32, 8), ("n", np.int32)])
    scalar, empty = np.array(2.5, np.float32), np.zeros((0, 4), np.float32)
    for values in (large.T, large[:10, ::3].T, rows, rows[::2], scalar, empty, large[::-1]):
        out = np.zeros(values.shape, values.dtype)
        device.upload(address, values)
        device.download(address, out)
        np.testing.assert_array_equal(out, values)
    device.close()
    assert not stub.faults


@on_stub()
def test_it_waits_only_where_the_ring_is_full(stub: Stub) -> None:
    device = CudaDevice()
    address = device.allocate(SEGMENT)
    device.trim()  # the memory has been cleared
    stub.late()
    values = np.full(SEGMENT, 1, np.uint8)
    for _ in range(SEGMENTS):
        device.upload(address, values)
    assert ctypes.string_at(address, 1) == b"\0"  # nothing has run: nothing was waited for
    device.upload(address, values)
    assert ctypes.string_at(address, 1) == b"\1"
    device.close()
    assert not stub.faults


@on_stub()
def test_a_failing_piece_is_sent_again_or_refused(stub: Stub) -> None:
    device = CudaDevice()
    values = np.random.default_rng(1).integers(0, 256, 3 * SEGMENT, np.uint8)
    address, out = device.allocate(values.size), np.empty_like(values)
    for name in ("cuMemcpyHtoDAsync", "cuEventRecord", "cuEventSynchronize"):
        stub.fail(name, nth=2, times=1)
        device.upload(address, values)
        device.download(address, out)
        np.testing.assert_array_equal(out, values)
    device.close()
    assert not stub.faults
