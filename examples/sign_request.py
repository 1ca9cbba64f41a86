"""Sign as a caller does, with the standard library only.

    AKM_SECRET=... python examples/sign_request.py KEY_ID [TIMESTAMP [NONCE]]

Prints 64 hex digits. Without arguments: the third test vector of docs/signing.md. Without a
timestamp the signature is ``static``, which can be replayed. ``api_key_manager.sign`` does the
same.
"""

import hashlib
import hmac
import os
import sys


def sign(secret, key_id, timestamp=None, nonce=""):
    message = key_id if timestamp is None else f"AKM1\n{key_id}\n{timestamp}\n{nonce}"
    return hmac.new(secret.encode(), message.encode(), hashlib.sha256).hexdigest()


arguments = sys.argv[1:]
if not arguments:
    print(sign("super-secret-key", "client-123", 1767225600, "q1w2e3r4t5y6u7i8o9p0aA"))
elif len(arguments) <= 3 and os.environ.get("AKM_SECRET"):
    print(sign(os.environ["AKM_SECRET"], *arguments))
else:
    sys.exit("usage: AKM_SECRET=... sign_request.py KEY_ID [TIMESTAMP [NONCE]]")
