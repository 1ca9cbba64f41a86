"""Keys in a Flask app: ``python examples/flask_app.py [PORT]``.

The keys are those of ``DATABASE_URL``, by default of ``data/akm.db`` below this folder.
"""

import sys

from flask import Flask, abort, request

from api_key_manager import open_manager
from api_key_manager.integrations import has_permissions
from api_key_manager.integrations.wsgi import ApiKeyMiddleware

app = Flask(__name__)
app.wsgi_app = ApiKeyMiddleware(app.wsgi_app, manager=open_manager(), exempt=["/healthz"])


@app.get("/healthz")
def healthz():
    return {"ok": True}


@app.get("/documents")
def documents():
    key = request.environ["api_key"]
    return {"key_id": key.key_id, "metadata": key.metadata}


@app.post("/documents")
def write():
    key = request.environ["api_key"]
    if not has_permissions(key, "documents.write and not trial"):
        abort(403)
    return {"key_id": key.key_id, "document": request.json, "body_verified": key.body_verified}


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
