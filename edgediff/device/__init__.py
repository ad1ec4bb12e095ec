"""Where the device loop runs: an NVIDIA GPU, or host memory where there is none."""
