"""Keys in a Django app, here of one file: ``python examples/django_app.py [PORT]``.

The keys are those of ``DATABASE_URL``, by default of ``data/akm.db`` below this folder. In a
project of your own, the last line but the server's goes into ``wsgi.py``.
"""

import json
import sys
from wsgiref.simple_server import make_server

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path

from api_key_manager import open_manager
from api_key_manager.integrations import has_permissions
from api_key_manager.integrations.wsgi import ApiKeyMiddleware

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"])


def healthz(request):
    return JsonResponse({"ok": True})


def documents(request):
    key = request.environ["api_key"]
    if request.method != "POST":
        return JsonResponse({"key_id": key.key_id, "metadata": key.metadata})
    if not has_permissions(key, "documents.write and not trial"):
        return JsonResponse({"error": "this key may not write"}, status=403)
    document = json.loads(request.body)
    return JsonResponse(
        {"key_id": key.key_id, "document": document, "body_verified": key.body_verified}
    )


urlpatterns = [path("healthz", healthz), path("documents", documents)]

application = ApiKeyMiddleware(get_wsgi_application(), manager=open_manager(), exempt=["/healthz"])

if __name__ == "__main__":
    make_server("127.0.0.1", int((sys.argv[1:] or ["8000"])[0]), application).serve_forever()
