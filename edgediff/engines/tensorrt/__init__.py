"""TensorRT runs engine files, which a child process builds and a cache keeps, on the stream of a device."""

from .backend import BACKEND

__all__ = ["BACKEND"]
