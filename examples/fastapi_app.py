"""Keys in a FastAPI app: ``python examples/fastapi_app.py [PORT]``.

The keys are those of ``DATABASE_URL``, by default of ``data/akm.db`` below this folder, where
``akm keys create`` makes them too.
"""

import sys
from contextlib import asynccontextmanager
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI

from api_key_manager import Verdict, open_manager
from api_key_manager.integrations.fastapi import KeyRefusedError, problem_response, require_key


@asynccontextmanager
async def lifespan(app):
    async with open_manager() as app.state.manager:
        yield


app = FastAPI(lifespan=lifespan)
app.add_exception_handler(KeyRefusedError, problem_response)

# What an endpoint asks for: any key, or one that may do something.
AnyKey = Annotated[Verdict, Depends(require_key())]
Writer = Annotated[Verdict, Depends(require_key("documents.write and not trial"))]


@app.get("/healthz")
async def healthz():
    return {"ok": True}


@app.get("/documents")
async def documents(key: AnyKey):
    return {"key_id": key.key_id, "metadata": key.metadata}


@app.post("/documents")
async def write(key: Writer, document: dict[str, str]):
    return {"key_id": key.key_id, "document": document, "body_verified": key.body_verified}


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
