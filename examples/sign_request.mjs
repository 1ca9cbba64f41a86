// Sign as a caller does, with Node.js 18 or newer and nothing installed.
//
//     AKM_SECRET=... node examples/sign_request.mjs KEY_ID [TIMESTAMP [NONCE]]
//
// Prints 64 hex digits. Without arguments: the third test vector of docs/signing.md.
// Without a timestamp the signature is `static`, which can be replayed.

import { createHmac } from "node:crypto";

function sign(secret, keyId, timestamp, nonce = "") {
  const message = timestamp === undefined ? keyId : `AKM1\n${keyId}\n${timestamp}\n${nonce}`;
  return createHmac("sha256", secret).update(message).digest("hex");
}

const args = process.argv.slice(2);
const secret = process.env.AKM_SECRET;

if (args.length === 0) {
  console.log(sign("super-secret-key", "client-123", 1767225600, "q1w2e3r4t5y6u7i8o9p0aA"));
} else if (args.length <= 3 && secret) {
  console.log(sign(secret, ...args));
} else {
  console.error("usage: AKM_SECRET=... sign_request.mjs KEY_ID [TIMESTAMP [NONCE]]");
  process.exit(1);
}
