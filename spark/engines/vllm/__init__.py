"""vLLM as an engine: the plugin inside it, and the client of a server that runs it.

`plugin` is the entry point `vllm.general_plugins`; vLLM loads it in the front end, the engine core
and every worker. Without `--branching spark` it changes nothing.
"""
