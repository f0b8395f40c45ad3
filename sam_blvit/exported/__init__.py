"""Exported SAMs: an encoder and a decoder as ONNX files, run by onnxruntime or read for their weights."""
