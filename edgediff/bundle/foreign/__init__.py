"""Folders of ONNX graphs that other exporters wrote (optimum, Olive, diffusers) open as bundles in memory."""
