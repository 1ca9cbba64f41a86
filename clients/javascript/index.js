// Signs HTTP requests as API Key Manager Pro reads them: RFC 9421 with hmac-sha256, one narrow
// profile. Node.js 18 or newer and browsers, by Web Crypto alone.
//
// What is signed is what fetch sends: the URL as the URL standard writes it, the method as fetch
// writes it, the bytes of the body.

const COVERED = '("@method" "@authority" "@path" "@query" "content-digest")';
const DEFAULT_PORTS = { "http:": "80", "https:": "443" };
// Methods that fetch writes in upper case, and no others.
const NORMALIZED = new Set(["DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT"]);
const MAX_SECRET_BYTES = 1024;
const MAX_URL = 8192;
const MAX_TIMESTAMP = 253402300799;

const IS_KEY_ID = /^[A-Za-z0-9._:-]{1,128}$/;
const IS_METHOD = /^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,32}$/;
const IS_NONCE = /^[A-Za-z0-9_-]{16,128}$/;
const IS_HOST = /^(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])$/;
const IS_VISIBLE = /^[!-~]*$/;

const utf8 = new TextEncoder();

/**
 * Sign a request. See index.d.ts for what it takes.
 *
 * Signs anew at each call: a nonce is accepted once, so a request that is sent again needs another
 * signature.
 */
export async function signRequest({ keyId, secret, ...request }) {
  return sign(keyId, await importSecret(keyId, secret), request);
}

/**
 * A fetch that signs whatever it sends.
 *
 * Redirects are not followed: fetch would send the signature on to wherever they lead.
 */
export function signedFetch(keyId, secret, options = {}) {
  const key = importSecret(keyId, secret);
  // Whoever never fetches never hears of a wrong secret; whoever does is told by the fetch.
  key.catch(() => {});
  const send = options.fetch ?? ((...sent) => globalThis.fetch(...sent));
  return async (input, init = {}) => {
    refuseStream(init?.body);
    // Reads every form of input, and makes the content type of a form or of parameters.
    const given = new Request(input, init);
    const body = ["GET", "HEAD"].includes(given.method) ? undefined : await given.arrayBuffer();
    const headers = await sign(keyId, await key, {
      method: given.method,
      url: given.url,
      headers: given.headers,
      body,
      created: options.created?.(),
      nonce: options.nonce?.(),
    });
    const redirect = given.redirect === "manual" ? "manual" : "error";
    return send(new Request(given, { headers, body, redirect }));
  };
}

async function sign(keyId, key, { method = "GET", url, body, headers, created, nonce }) {
  const verb = methodOf(method);
  const target = targetOf(url);
  const sent = new Headers(headers ?? {});
  checkHost(sent.get("host"), target);
  const at = created ?? Math.floor(Date.now() / 1000);
  if (!Number.isInteger(at) || at < 0 || at > MAX_TIMESTAMP) {
    throw new TypeError("created: whole Unix seconds up to the year 9999 are allowed");
  }
  const once = nonce ?? (await randomNonce());
  if (typeof once !== "string" || !IS_NONCE.test(once)) {
    throw new TypeError("nonce: 16 to 128 characters of A-Z a-z 0-9 _ - are allowed");
  }
  const { subtle } = await webCrypto();
  const hash = await subtle.digest("SHA-256", await bytesOf(body));
  const digest = `sha-256=${sequence(hash)}`;
  const parameters =
    `${COVERED};created=${at};nonce="${once}";keyid="${keyId}";alg="hmac-sha256";tag="akm"`;
  const base = [
    `"@method": ${verb}`,
    `"@authority": ${target.authority}`,
    `"@path": ${target.path}`,
    `"@query": ${target.query}`,
    `"content-digest": ${digest}`,
    `"@signature-params": ${parameters}`,
  ].join("\n");
  const mac = await subtle.sign("HMAC", key, utf8.encode(base));
  return {
    ...Object.fromEntries(sent),
    "content-digest": digest,
    "signature-input": `akm=${parameters}`,
    signature: `akm=${sequence(mac)}`,
  };
}

async function importSecret(keyId, secret) {
  if (typeof keyId !== "string" || !IS_KEY_ID.test(keyId)) {
    throw new TypeError("keyId: 1 to 128 characters of A-Z a-z 0-9 . _ : - are allowed");
  }
  const bytes = typeof secret === "string" ? utf8.encode(secret) : new Uint8Array();
  if (bytes.length === 0 || bytes.length > MAX_SECRET_BYTES || !isText(bytes, secret)) {
    throw new TypeError("secret: text of 1 to 1024 bytes is allowed");
  }
  const { subtle } = await webCrypto();
  return subtle.importKey("raw", bytes, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
}

// Half of a surrogate pair has no bytes in UTF-8: TextEncoder would sign with another secret.
function isText(bytes, text) {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes) === text;
}

function methodOf(method) {
  if (typeof method !== "string" || !IS_METHOD.test(method)) {
    throw new TypeError("method: 1 to 32 characters of an HTTP method are allowed");
  }
  const upper = method.toUpperCase();
  return NORMALIZED.has(upper) ? upper : method;
}

function targetOf(url) {
  let parsed;
  try {
    parsed = new URL(url);
  } catch {
    throw new TypeError("url: an absolute http or https URL is allowed");
  }
  const { protocol, username, password, hostname, port, pathname, search } = parsed;
  if (!(protocol in DEFAULT_PORTS)) {
    throw new TypeError("url: an absolute http or https URL is allowed");
  }
  if (username || password) {
    throw new TypeError("url: user name and password are not allowed in it");
  }
  if (!IS_HOST.test(hostname) || !IS_VISIBLE.test(pathname + search)) {
    throw new TypeError("url: visible ASCII characters are allowed");
  }
  if (parsed.href.length - parsed.hash.length > MAX_URL) {
    throw new TypeError(`url: at most ${MAX_URL} characters are allowed`);
  }
  // The URL standard has lower-cased the host and dropped the default port already.
  return {
    protocol,
    authority: port ? `${hostname}:${port}` : hostname,
    path: pathname,
    query: search || "?",
  };
}

// A Host header of the caller's own is what the receiver would go by, and it is not signed.
function checkHost(host, { protocol, authority }) {
  if (host === null) return;
  const given = host.toLowerCase();
  if (given !== authority && given !== `${authority}:${DEFAULT_PORTS[protocol]}`) {
    throw new TypeError("host: it names another authority than the URL, send it there");
  }
}

async function bytesOf(body) {
  if (body === undefined || body === null) return new Uint8Array();
  if (typeof body === "string") return utf8.encode(body);
  if (body instanceof ArrayBuffer) return body;
  if (ArrayBuffer.isView(body)) {
    return new Uint8Array(body.buffer, body.byteOffset, body.byteLength);
  }
  if (typeof Blob !== "undefined" && body instanceof Blob) return body.arrayBuffer();
  if (body instanceof URLSearchParams) return utf8.encode(body.toString());
  refuseStream(body);
  throw new TypeError(
    "body: a string, ArrayBuffer, typed array, Blob or URLSearchParams is allowed",
  );
}

function refuseStream(body) {
  const streams =
    body !== null && typeof body === "object" &&
    ("getReader" in body || "pipe" in body || Symbol.asyncIterator in body);
  if (streams) {
    throw new TypeError("body: a stream cannot be signed before it is read, read it first");
  }
}

async function randomNonce() {
  const bytes = (await webCrypto()).getRandomValues(new Uint8Array(16));
  return base64(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

async function webCrypto() {
  if (globalThis.crypto?.subtle) return globalThis.crypto;
  if (globalThis.process?.versions?.node) {
    // Node.js 18 has it under this name only, which bundlers for browsers must not look for.
    const name = "node:crypto";
    return (await import(/* @vite-ignore */ /* webpackIgnore: true */ name)).webcrypto;
  }
  throw new Error("crypto.subtle is missing: browsers have it on HTTPS pages and localhost");
}

function sequence(buffer) {
  return `:${base64(new Uint8Array(buffer))}:`;
}

function base64(bytes) {
  return btoa(String.fromCharCode(...bytes));
}
