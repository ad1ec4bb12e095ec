"""Engines run the parts of a bundle: ONNX Runtime and TensorRT, and the choice between them."""
