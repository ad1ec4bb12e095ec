"""ONNX graphs: traced from the parts of a checkpoint, and kept without their weights in memory."""
