"""A stub of NVIDIA's driver, under the real cuda-core: what edgediff asks of a driver, without a GPU."""
