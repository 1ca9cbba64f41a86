import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { Readable } from "node:stream";
import { test } from "node:test";

import { signRequest, signedFetch } from "../index.js";

const vectors = JSON.parse(readFileSync(new URL("vectors.json", import.meta.url)));
const KEY = { keyId: "client-123", secret: "super-secret-key" };
const FIXED = { created: 1767225600, nonce: "q1w2e3r4t5y6u7i8o9p0aA" };
const URL_ = "https://shop.example/orders";
const NAMES = ["content-digest", "signature", "signature-input"];

const digest = async (body) =>
  (await signRequest({ ...KEY, ...FIXED, method: "POST", url: URL_, body }))["content-digest"];

for (const [i, vector] of vectors.entries()) {
  test(`vector ${i}: ${vector.method} ${vector.url.slice(0, 60)}`, async () => {
    const { headers, body, ...request } = vector;
    assert.deepEqual(await signRequest({ ...request, body: Buffer.from(body, "base64") }), headers);
  });
}

test("every form of a body is signed by its bytes", async () => {
  const bytes = new TextEncoder().encode("a=1&b=ü");
  const wider = new Uint8Array([9, 9, ...bytes, 9]);
  const expected = await digest(bytes);
  for (const body of [
    "a=1&b=ü",
    bytes.buffer,
    wider.subarray(2, 2 + bytes.length),
    new DataView(wider.buffer, 2, bytes.length),
    Buffer.from(bytes),
    new Blob(["a=1&b=", "ü"]),
  ]) {
    assert.equal(await digest(body), expected);
  }
  const parameters = new URLSearchParams({ a: "1", b: "ü" });
  assert.equal(await digest(parameters), await digest("a=1&b=%C3%BC"));
  const empty = await digest("");
  for (const body of [undefined, null, new Uint8Array(), new Blob([])]) {
    assert.equal(await digest(body), empty);
  }
});

test("streams and objects are refused, by name", async () => {
  for (const body of [new ReadableStream(), Readable.from(["x"]), (async function* () {})()]) {
    await assert.rejects(digest(body), { name: "TypeError", message: /^body: a stream/ });
  }
  for (const body of [{}, [], 7, true, new FormData(), () => "x"]) {
    await assert.rejects(digest(body), { name: "TypeError", message: /^body: a string/ });
  }
});

test("the URL is signed as fetch sends it", async () => {
  const sign = (url) => signRequest({ ...KEY, ...FIXED, url });
  for (const [given, sent] of [
    ["https://Shop.Example:443/a/../b c?ü=%zz#part", "https://shop.example/b%20c?%C3%BC=%zz"],
    ["https://bücher.example/", "https://xn--bcher-kva.example/"],
    ["https://shop.example\\a", "https://shop.example/a"],
    [new URL("/x?", "https://shop.example"), "https://shop.example/x"],
  ]) {
    assert.deepEqual(await sign(given), await sign(sent));
  }
  for (const url of ["/relative", "", "ftp://a/", "https://u:p@a/", "https://u@a/", "https://a!b/",
    `https://a/${"x".repeat(8200)}`, undefined, 5]) {
    await assert.rejects(sign(url), { name: "TypeError", message: /^url: / }, String(url));
  }
});

test("the method is signed as fetch sends it", async () => {
  const sign = (method) => signRequest({ ...KEY, ...FIXED, url: URL_, method });
  assert.deepEqual(await sign("get"), await sign("GET"));
  assert.notDeepEqual(await sign("patch"), await sign("PATCH"));
  assert.deepEqual(await signRequest({ ...KEY, ...FIXED, url: URL_ }), await sign("GET"));
  for (const method of ["", "G T", "GET\n", 5, null]) {
    await assert.rejects(sign(method), { name: "TypeError", message: /^method: / });
  }
});

test("wrong arguments are named, and the secret is in no message", async () => {
  for (const [wrong, name] of [
    [{ keyId: "" }, "keyId"],
    [{ keyId: 'a"' }, "keyId"],
    [{ keyId: undefined }, "keyId"],
    [{ secret: "" }, "secret"],
    [{ secret: "super-secret-key".repeat(65) }, "secret"],
    [{ secret: "super-secret-key\ud800" }, "secret"],
    [{ secret: undefined }, "secret"],
    [{ created: 1.5 }, "created"],
    [{ created: -1 }, "created"],
    [{ created: Date.now() * 1000 }, "created"],
    [{ created: "1767225600" }, "created"],
    [{ nonce: "short" }, "nonce"],
    [{ nonce: 'x"; tag="y"; abcdef' }, "nonce"],
  ]) {
    await assert.rejects(signRequest({ ...KEY, ...FIXED, url: URL_, ...wrong }), (error) => {
      assert.ok(error instanceof TypeError);
      assert.ok(error.message.startsWith(`${name}: `), error.message);
      assert.ok(!error.stack.includes("super-secret-key"));
      return true;
    });
  }
});

test("headers are kept, old signatures replaced, another host refused", async () => {
  const sign = (headers) => signRequest({ ...KEY, ...FIXED, url: URL_, headers });
  const plain = await sign();
  const more = await sign({ Accept: "text/plain", Signature: "old", "SIGNATURE-INPUT": "old" });
  assert.deepEqual(more, { accept: "text/plain", ...plain });
  assert.deepEqual(await sign([["accept", "text/plain"]]), more);
  for (const host of ["shop.example", "SHOP.example:443"]) {
    assert.deepEqual(await sign({ Host: host }), { host, ...plain });
  }
  for (const host of ["evil.example", "shop.example:80", "shop.example/x", "shop.example@evil"]) {
    await assert.rejects(sign({ host }), { name: "TypeError", message: /^host: / });
  }
});

test("each signature has a time and a nonce of its own", async () => {
  const before = Math.floor(Date.now() / 1000);
  const made = await Promise.all([1, 2, 3].map(() => signRequest({ ...KEY, url: URL_ })));
  const inputs = made.map((headers) => headers["signature-input"]);
  assert.equal(new Set(inputs.map((input) => /nonce="([\w-]{22})"/.exec(input)[1])).size, 3);
  for (const input of inputs) {
    const created = Number(/created=(\d+)/.exec(input)[1]);
    assert.ok(before <= created && created <= Date.now() / 1000);
  }
});

async function serving(answer, use) {
  const seen = [];
  const server = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    seen.push({ request, body: Buffer.concat(chunks) });
    answer(request, response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    return await use(`http://127.0.0.1:${server.address().port}`, seen);
  } finally {
    server.closeAllConnections?.();
    server.close();
  }
}

test("signedFetch signs what arrives, whatever it is given", async () => {
  const form = new FormData();
  form.set("a", "b");
  await serving(
    (_, response) => response.end("ok"),
    async (url, seen) => {
      const fetch = signedFetch(KEY.keyId, KEY.secret, {
        created: () => FIXED.created,
        nonce: () => FIXED.nonce,
      });
      for (const [input, init] of [
        [`${url}/a b?ü#f`],
        [new URL(`${url}/x`), { method: "post", body: "text" }],
        [`${url}/x`, { method: "POST", body: new URLSearchParams({ a: "ü" }) }],
        [`${url}/x`, { method: "POST", body: form }],
        [`${url}/x`, { method: "POST" }],
        [`${url}/x`, { method: "PATCH", body: new Uint8Array([1, 2]), headers: { "x-a": "b" } }],
        [new Request(`${url}/x`, { method: "PUT", body: "text" })],
        [new Request(`${url}/x`, { method: "PUT", body: "text" }), { body: "other" }],
        [`${url}/x`, { method: "DELETE" }],
      ]) {
        assert.equal(await (await fetch(input, init)).text(), "ok");
        const { request, body } = seen.at(-1);
        const expected = await signRequest({
          ...KEY, ...FIXED, method: request.method, url: url + request.url, body,
        });
        for (const name of NAMES) assert.equal(request.headers[name], expected[name], name);
      }
      assert.equal(seen[5].request.headers["x-a"], "b");
      assert.match(seen[2].request.headers["content-type"], /x-www-form-urlencoded/);
      assert.equal(seen[7].body.toString(), "other");
    },
  );
});

test("signedFetch refuses a stream before it sends", async () => {
  const fetch = signedFetch(KEY.keyId, KEY.secret, { fetch: () => assert.fail("it was sent") });
  const body = new ReadableStream();
  await assert.rejects(fetch(URL_, { method: "POST", body, duplex: "half" }), /^TypeError: body: a stream/);
});

test("signedFetch tells of a wrong secret when it is used", async () => {
  await assert.rejects(signedFetch("client-123", "")(URL_), { message: /^secret: / });
});

test("signedFetch sends no signature where a redirect leads", async () => {
  await serving(
    (_, response) => response.end("elsewhere"),
    (elsewhere, reached) =>
      serving(
        (request, response) => {
          response.writeHead(307, { location: request.url === "/out" ? elsewhere : "/in" }).end();
        },
        async (url, seen) => {
          const fetch = signedFetch(KEY.keyId, KEY.secret);
          for (const path of ["/out", "/in"]) {
            await assert.rejects(fetch(url + path, { method: "POST", body: "x" }), TypeError);
            await assert.rejects(fetch(url + path, { redirect: "follow" }), TypeError);
            assert.equal((await fetch(url + path, { redirect: "manual" })).status, 307);
          }
          assert.equal(reached.length, 0);
          assert.equal(seen.length, 6);
        },
      ),
  );
});
