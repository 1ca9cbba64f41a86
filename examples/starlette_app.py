"""Keys and rate limits around any ASGI app: ``python examples/starlette_app.py [PORT]``.

The keys are those of ``DATABASE_URL``, by default of ``data/akm.db`` below this folder.
"""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from api_key_manager import RateLimit, open_manager
from api_key_manager.integrations import ApiKeyMiddleware, RateLimitMiddleware, has_permissions


async def healthz(request):
    return JSONResponse({"ok": True})


async def documents(request):
    key = request.state.api_key
    if request.method == "POST" and not has_permissions(key, "documents.write and not trial"):
        return JSONResponse({"error": "this key may not write"}, 403)
    return JSONResponse({"key_id": key.key_id, "metadata": key.metadata})


def by_owner(scope):
    """All keys of one owner share these limits; who needs no key has none."""
    key = scope["api_key"]
    return key and (key.key.owner or key.key_id)


app = Starlette(
    routes=[Route("/healthz", healthz), Route("/documents", documents, methods=["GET", "POST"])],
    middleware=[
        # The first one is the outermost.
        Middleware(ApiKeyMiddleware, manager=open_manager(), exempt=["/healthz"]),
        Middleware(RateLimitMiddleware, limits=[RateLimit("app", 5, 60)], key=by_owner),
    ],
)

if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
