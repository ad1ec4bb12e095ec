"""ONNX graphs are traced from the parts of a checkpoint, and keep their weights out of memory."""
