#!/bin/sh
# Sign as a caller does, with openssl.
#
#     AKM_SECRET=... sh examples/sign_request.sh KEY_ID [TIMESTAMP [NONCE]]
#
# Prints 64 hex digits. Without arguments: the third test vector of docs/signing.md.
# Without a timestamp the signature is `static`, which can be replayed.
#
# openssl takes the secret as an argument: for a moment other users of this machine can see it
# in the list of processes. Where that matters, use `akm sign` or one of the other examples.
set -eu

if [ $# -eq 0 ]; then
    AKM_SECRET=super-secret-key
    set -- client-123 1767225600 q1w2e3r4t5y6u7i8o9p0aA
fi
if [ $# -gt 3 ] || [ -z "${AKM_SECRET:-}" ]; then
    echo "usage: AKM_SECRET=... sign_request.sh KEY_ID [TIMESTAMP [NONCE]]" >&2
    exit 1
fi

if [ $# -eq 1 ]; then
    printf '%s' "$1"
else
    printf 'AKM1\n%s\n%s\n%s' "$1" "$2" "${3:-}"
fi | openssl dgst -sha256 -hmac "$AKM_SECRET" -r | cut -c1-64
