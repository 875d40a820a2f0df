"""The HTTP face: an OpenAI-compatible server in one process, the engine in another, typed messages between them."""
