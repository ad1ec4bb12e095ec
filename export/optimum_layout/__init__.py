"""A checkpoint becomes a folder in optimum's layout, which its ONNX Runtime pipelines open."""
