"""A model behind an HTTP API (vLLM's own server) and on a chat page (Gradio)."""
