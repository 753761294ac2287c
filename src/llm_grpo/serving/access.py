"""The API key for all of vLLM's server. vLLM itself asks for it under /v1 only (0.31: /invocations answers anybody).

vLLM loads this by name (--middleware llm_grpo.serving.access.KeyEverywhere), in the server's process.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

KEY = "VLLM_API_KEY"
OPEN = ("/health", "/ping")  # whoever watches over the server has no key
Receive, Send = Callable[[], Awaitable[Any]], Callable[[dict[str, Any]], Awaitable[None]]


class KeyEverywhere:
    """ASGI middleware: 401 for every path but OPEN without `Authorization: Bearer KEY`. Without a key set, all pass."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app, self.key = app, os.environ.get(KEY, "").encode()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if not self.key or scope["type"] != "http" or self._may_pass(scope):
            await self.app(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})

    def _may_pass(self, scope: dict[str, Any]) -> bool:
        if scope["path"] in OPEN or scope["method"] == "OPTIONS":  # a browser asks first whether it may ask (CORS)
            return True
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and secrets.compare_digest(given, self.key)
