"""Directions as tensors and files. Nothing here knows a model.

Tensors are float32 on the CPU. A direction per layer is `[hidden]`; a stack of layers is `[layers, hidden]`.
"""
