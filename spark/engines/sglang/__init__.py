"""SGLang as an engine: a plugin that forks inside the stock engine, and clients of it."""
