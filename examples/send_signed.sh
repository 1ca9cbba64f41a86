#!/bin/sh
# Send an HTTP request that is signed as a whole (RFC 9421), with curl and openssl.
#
#     AKM_SECRET=... sh examples/send_signed.sh KEY_ID METHOD URL [FILE]
#
# FILE holds the body. The URL is sent as it is written: percent-encoded, without a fragment.
#
# openssl takes the secret as an argument: for a moment other users of this machine can see it
# in the list of processes. Where that matters, use another client.
set -eu

if [ $# -lt 3 ] || [ $# -gt 4 ] || [ -z "${AKM_SECRET:-}" ]; then
    echo "usage: AKM_SECRET=... send_signed.sh KEY_ID METHOD URL [FILE]" >&2
    exit 1
fi
key_id=$1 method=$2 url=$3 body=${4:-/dev/null}

# Scheme, authority, path and query of the URL; a default port is not signed.
rest=${url#*://}
authority=$(printf '%s' "${rest%%[/?]*}" | tr '[:upper:]' '[:lower:]')
case $url in
    [Hh][Tt][Tt][Pp]://*) authority=${authority%:80} ;;
    *) authority=${authority%:443} ;;
esac
target=${rest#"${rest%%[/?]*}"}
path=${target%%\?*}
query=${target#"$path"}

digest="sha-256=:$(openssl dgst -sha256 -binary "$body" | openssl base64 -A):"
covered='("@method" "@authority" "@path" "@query" "content-digest")'
parameters="$covered;created=$(date +%s);nonce=\"$(openssl rand -hex 16)\";keyid=\"$key_id\""
parameters="$parameters;alg=\"hmac-sha256\";tag=\"akm\""
signature=$(
    printf '"@method": %s\n"@authority": %s\n"@path": %s\n"@query": %s\n"content-digest": %s\n%s' \
        "$method" "$authority" "${path:-/}" "${query:-?}" "$digest" \
        "\"@signature-params\": $parameters" |
        openssl dgst -sha256 -hmac "$AKM_SECRET" -binary | openssl base64 -A
)

if [ $# -eq 4 ]; then
    set -- --data-binary "@$body"
else
    set --
fi
exec curl -sS -g --path-as-is -X "$method" "$@" \
    -H "Content-Digest: $digest" \
    -H "Signature-Input: akm=$parameters" \
    -H "Signature: akm=:$signature:" "$url"
