"""Serving: OpenAI's routes with trees, the same on the embedded engine, vLLM and SGLang."""
