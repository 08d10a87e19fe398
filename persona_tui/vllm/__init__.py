"""Personas inside vLLM: a plugin that steers and caps each request by itself.

Only vLLM's own processes import vllm; everything else here is plain.
"""
