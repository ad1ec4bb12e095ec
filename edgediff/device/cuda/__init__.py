"""An NVIDIA GPU as a device: its memory, its stream, its kernels."""

from .device import CudaDevice, why_no_device

__all__ = ["CudaDevice", "why_no_device"]
