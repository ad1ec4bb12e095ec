"""ONNX files are read without the package onnx: what their graphs take and give, and which other files they name."""
