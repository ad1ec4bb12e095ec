"""Stands in for TensorRT where there is none: the classes that edgediff uses, under their rules, over ONNX Runtime.

An engine file names its ONNX file; running it reads and writes host addresses. Whether the real TensorRT has these
names and signatures is another test's business (test_bindings). ``EDGEDIFF_STANDIN`` makes a build fail in a chosen
way.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

__version__ = os.environ.get("EDGEDIFF_STANDIN_VERSION", "10.13.3.9")
MAGIC = b"standin engine "
counts = {"contexts": 0, "runs": 0, "refits": 0}


class DataType(enum.Enum):
    FLOAT, HALF, BF16, INT64, INT32 = range(5)


TYPES = {"tensor(float)": DataType.FLOAT, "tensor(float16)": DataType.HALF, "tensor(int64)": DataType.INT64}
NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT64: np.int64}


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    VERSION_COMPATIBLE, STRIP_PLAN, REFIT_IDENTICAL = range(3)


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class HardwareCompatibilityLevel(enum.Enum):
    NONE, AMPERE_PLUS = range(2)


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IProgressMonitor:
    pass


class Dims(tuple):
    __slots__ = ()


class OptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):
        assert all(isinstance(v, Dims) for v in (min, opt, max))
        self.shapes[input] = [list(min), list(opt), list(max)]


class TimingCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return self.data


class BuilderConfig:
    def __init__(self, logger):
        self.flags, self.profiles, self.limits, self.timing = set(), [], {}, None
        self.builder_optimization_level, self.progress_monitor, self.logger = 3, None, logger
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE

    def set_flag(self, flag):
        self.flags.add(flag)

    def set_memory_pool_limit(self, pool, size):
        if size > 1 << 40:
            self.logger.log(ILogger.Severity.ERROR, "this GPU has less memory")
            return
        self.limits[pool] = size

    def add_optimization_profile(self, profile):
        if os.environ.get("EDGEDIFF_STANDIN") == "profile":
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data):
        return TimingCache(data) if data.strip(b".") == b"" else None

    def set_timing_cache(self, cache, ignore_mismatch):
        self.timing = TimingCache(cache.data)  # its own: what is measured later is not in the one given
        return True

    def get_timing_cache(self):
        return self.timing


class Network:
    def __init__(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self.path, self.inputs = None, []
        self.num_inputs = 0

    def get_input(self, k):
        return self.inputs[k]


class ParserError:
    def __init__(self, text):
        self.text = text

    def desc(self):
        return self.text

    def node_name(self):
        return "conv_in"


class OnnxParser:
    def __init__(self, network, logger):
        self.network, self.errors = network, []

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, k):
        return self.errors[k]

    def parse_from_file(self, model):
        if os.environ.get("EDGEDIFF_STANDIN") == "unreadable":
            self.errors.append(ParserError("no  such\noperator"))
            return False
        session = _session(model)
        self.network.path, self.network.inputs = model, session.get_inputs()
        self.network.num_inputs = len(self.network.inputs)
        return True


class Builder:
    def __init__(self, logger):
        if os.environ.get("EDGEDIFF_STANDIN") == "start":
            logger.log(ILogger.Severity.ERROR, "no kernel image")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger

    def create_network(self, flags):
        return Network(flags)

    def create_builder_config(self):
        return BuilderConfig(self.logger)

    def create_optimization_profile(self):
        return OptimizationProfile()

    def build_serialized_network(self, network, config):
        how = os.environ.get("EDGEDIFF_STANDIN", "")
        monitor, steps = config.progress_monitor, 4
        print("a library that prints {}")  # must not be taken for the builder's own lines
        monitor.phase_start("Build", None, 2)
        monitor.phase_start("Tactics", "Build", steps)
        for k in range(steps):
            time.sleep(float(os.environ.get("EDGEDIFF_STANDIN_STEP", "0.12")))
            if how and k == 2:
                _fail(how, self.logger)
                if how == "none":
                    return None
            assert monitor.step_complete("Tactics", k) is True
        monitor.phase_finish("Tactics")
        monitor.step_complete("Build", 1)
        monitor.phase_finish("Build")
        if config.timing is not None:
            config.timing.data += b"."
        facts = {
            "graph": network.path,
            "profile": config.profiles[0].shapes,
            "flags": sorted(f.name for f in config.flags),
            "limits": {p.name: v for p, v in config.limits.items()},
            "level": config.builder_optimization_level,
            "hardware": config.hardware_compatibility_level.name,
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }
        return MAGIC + json.dumps(facts).encode()


def _fail(how, logger):
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "exit":
        print("the library\ngives up", file=sys.stderr)
        os._exit(5)
    if how == "none":
        logger.log(ILogger.Severity.ERROR, "no kernel\nfor  node 7")
    if how == "raise":
        raise RuntimeError("out of luck")
    if how == "memory":
        hold = [np.ones(1 << 20) for _ in range(60)]
        time.sleep(60)
        del hold
    if how == "hang":
        time.sleep(600)
    if how == "deaf":  # to its parent's wishes
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.close(1)
        time.sleep(600)


def _session(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Runtime:
    def __init__(self, logger):
        self.logger, self.engine_host_code_allowed = logger, False

    def deserialize_cuda_engine(self, serialized_engine):
        data = bytes(serialized_engine)
        if not data.startswith(MAGIC):
            self.logger.log(ILogger.Severity.ERROR, "magic tag does not match")
            return None
        facts = json.loads(data[len(MAGIC) :])
        if "VERSION_COMPATIBLE" in facts["flags"] and not self.engine_host_code_allowed:
            self.logger.log(ILogger.Severity.ERROR, "host code is not allowed")
            return None
        return Engine(facts, self.logger)


class Engine:
    def __init__(self, facts, logger):
        self.facts, self.logger, self.contexts = facts, logger, 0
        self.whole = "STRIP_PLAN" not in facts["flags"]
        self.session = _session(facts["graph"])
        self.tensors = {t.name: (t, TensorIOMode.INPUT) for t in self.session.get_inputs()}
        self.tensors |= {t.name: (t, TensorIOMode.OUTPUT) for t in self.session.get_outputs()}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, k):
        return list(self.tensors)[k]

    def get_tensor_mode(self, name):
        return self.tensors[name][1]

    def get_tensor_dtype(self, name):
        return TYPES[self.tensors[name][0].type]

    def create_execution_context(self, strategy):
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        assert self.whole, "run before its weights came"
        counts["contexts"] += 1
        self.contexts += 1
        return Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self.memory = engine, {}, {}, (0, 0)
        self.moved = 0  # how often an address was changed
        self.active_optimization_profile = 0 if engine.contexts == 1 else -1

    def set_optimization_profile_async(self, profile_index, stream_handle):
        self.active_optimization_profile = profile_index
        self.shapes.clear()
        return True

    def set_input_shape(self, name, shape):
        assert self.active_optimization_profile == 0
        least, _, most = self.engine.facts["profile"][name]
        if not all(a <= v <= b for a, v, b in zip(least, shape, most, strict=True)):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        """As a graph of these parts would infer it."""
        if name in self.shapes:
            return Dims(self.shapes[name])
        feeds = {k: np.zeros(s, NUMPY[self.engine.get_tensor_dtype(k)]) for k, s in self.shapes.items()}
        return Dims(self.engine.session.run([name], feeds)[0].shape)

    def update_device_memory_size_for_shapes(self):
        return 256 * max(int(np.prod(s)) for s in self.shapes.values())

    def set_device_memory(self, memory, size):
        if memory % 512:
            self.engine.logger.log(ILogger.Severity.ERROR, "memory must be aligned on 512 byte boundary")
            return
        self.memory = memory, size

    def set_tensor_address(self, name, memory):
        if memory % 256:
            self.engine.logger.log(ILogger.Severity.ERROR, f"{name} is not aligned")
            return False
        self.moved += self.addresses.get(name, memory) != memory
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        assert set(self.shapes) == set(self.engine.facts["profile"])
        assert self.addresses.keys() == self.engine.tensors.keys()
        address, size = self.memory
        assert address or not size
        assert size >= self.update_device_memory_size_for_shapes()
        ctypes.memset(address, 0xFF, size)  # activations lie there: whatever else does is lost
        feeds = {name: self._view(name, shape).copy() for name, shape in self.shapes.items()}
        names = [n for n, (_, mode) in self.engine.tensors.items() if mode == TensorIOMode.OUTPUT]
        for name, values in zip(names, self.engine.session.run(names, feeds), strict=True):
            self._view(name, values.shape)[...] = values
        counts["runs"] += 1
        return True

    def _view(self, name, shape):
        dtype = np.dtype(NUMPY[self.engine.get_tensor_dtype(name)])
        count = int(np.prod(shape))
        if not count:
            return np.zeros(shape, dtype)
        buffer = (ctypes.c_char * (count * dtype.itemsize)).from_address(self.addresses[name])
        return np.frombuffer(buffer, dtype).reshape(shape)


class Refitter:
    def __init__(self, engine, logger):
        self.engine, self.graph = engine, None

    def refit_cuda_engine(self):
        self.engine.whole = self.graph == self.engine.facts["graph"]
        counts["refits"] += 1
        return self.engine.whole


class OnnxParserRefitter:
    def __init__(self, refitter, logger):
        self.refitter = refitter

    def refit_from_file(self, model):
        self.refitter.graph = model
        return Path(model).is_file()
