"""The CUDA sources, as data: edgediff compiles and launches them (edgediff/device/)."""
