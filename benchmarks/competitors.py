"""What the server is compared with: the same check of one signed key, done by others.

Each reads ``{"key", "signature", "timestamp"}``, computes the HMAC-SHA256 of the same
message, compares it, looks at the window, and answers a small JSON document. None of them keeps
an audit log, a limit or a metric.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from typing import Any

import msgspec
from fastapi import FastAPI
from pydantic import BaseModel

KEY_ID = os.environ.get("BENCH_KEY_ID", "")
SECRET = os.environ.get("BENCH_SECRET", "").encode()


def is_valid(key: str, signature: str, timestamp: int) -> bool:
    """The check, as one would write it by hand."""
    if key != KEY_ID or not -60 <= time.time() - timestamp <= 21_660:
        return False
    wanted = hmac.digest(SECRET, f"AKM1\n{key}\n{timestamp}\n".encode(), hashlib.sha256)
    return hmac.compare_digest(wanted, bytes.fromhex(signature))


class Credential(msgspec.Struct):
    key: str
    signature: str
    timestamp: int


_decode = msgspec.json.Decoder(Credential).decode
_encode = msgspec.json.Encoder().encode


async def bare(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An ASGI application with nothing in it."""
    body = (await receive())["body"] or b'{"key":"","signature":"","timestamp":0}'
    item = _decode(body)
    valid = is_valid(item.key, item.signature, item.timestamp)
    answer = _encode({"valid": valid, "key_id": item.key})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(answer)),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


class Body(BaseModel):
    key: str
    signature: str
    timestamp: int


framework = FastAPI()


@framework.post("/v1/validate")
async def validate(body: Body) -> dict[str, Any]:
    """What a team writes in an afternoon."""
    valid = is_valid(body.key, body.signature, body.timestamp)
    return {"valid": valid, "key_id": body.key}


NGINX = """
load_module modules/ndk_http_module.so;
load_module modules/ngx_http_lua_module.so;
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_buffer_size 64k;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 100000000;
    default_type application/json;
    init_by_lua_block {{
        cjson = require "cjson.safe"
        ffi = require "ffi"
        ffi.cdef[[
            const void *EVP_sha256(void);
            unsigned char *HMAC(const void *md, const void *key, int key_len,
                const unsigned char *data, size_t len, unsigned char *out, unsigned int *out_len);
            int CRYPTO_memcmp(const void *a, const void *b, size_t len);
        ]]
        sha256 = ffi.C.EVP_sha256()
        out, out_len = ffi.new("unsigned char[32]"), ffi.new("unsigned int[1]")
        given = ffi.new("unsigned char[32]")
        secrets = {{ ["{key_id}"] = "{secret}" }}
        function is_valid(item)
            local secret = secrets[item.key]
            local age = ngx.now() - item.timestamp
            if not secret or age < -60 or age > 21660 or #item.signature ~= 64 then
                return false
            end
            local message = "AKM1\\n" .. item.key .. "\\n" .. item.timestamp .. "\\n"
            ffi.C.HMAC(sha256, secret, #secret, message, #message, out, out_len)
            for i = 0, 31 do
                given[i] = tonumber(item.signature:sub(2 * i + 1, 2 * i + 2), 16) or 0
            end
            return ffi.C.CRYPTO_memcmp(out, given, 32) == 0
        end
    }}
    server {{
        listen 127.0.0.1:{port};
        location = /static {{ return 200 '{{"valid":true}}'; }}
        location = /v1/validate {{
            content_by_lua_block {{
                ngx.req.read_body()
                local item = cjson.decode(ngx.req.get_body_data())
                ngx.print(cjson.encode({{ valid = is_valid(item), key_id = item.key }}))
            }}
        }}
    }}
}}
"""
