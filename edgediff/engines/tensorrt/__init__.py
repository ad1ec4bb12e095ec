"""TensorRT: engine files are built in a child process, kept in a cache, and run on the stream of a device."""

from .backend import BACKEND

__all__ = ["BACKEND"]
