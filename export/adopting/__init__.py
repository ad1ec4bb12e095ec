"""A folder of ONNX graphs that another exporter wrote becomes a bundle, without torch."""
