/** What can be signed before it is sent. A stream must be read first. */
export type Body =
  | string
  | ArrayBuffer
  | ArrayBufferView
  | Blob
  | URLSearchParams
  | null
  | undefined;

export interface SignedRequest {
  /** 1 to 128 characters of `A-Z a-z 0-9 . _ : -`. */
  keyId: string;
  /** As it was shown when the key was created. */
  secret: string;
  /** As fetch takes it; `GET` when left out. */
  method?: string;
  /** Absolute, `http` or `https`, without user name. A fragment is never sent. */
  url: string | URL;
  /** What is sent, after any compression. */
  body?: Body;
  /** Other headers to send. A `Host` among them must be that of the URL. */
  headers?: HeadersInit;
  /** Unix seconds; now when left out. */
  created?: number;
  /** 16 to 128 characters of `A-Z a-z 0-9 _ -`, used once; random when left out. */
  nonce?: string;
}

/**
 * Sign a request.
 *
 * @returns `headers` under lower-case names, with `content-digest`, `signature-input` and
 * `signature`.
 * @throws TypeError something that cannot be signed; the message names it.
 */
export function signRequest(request: SignedRequest): Promise<Record<string, string>>;

export interface SignedFetchOptions {
  /** What sends; the global fetch when left out. */
  fetch?: (request: Request) => Promise<Response>;
  /** Gives Unix seconds; for tests. */
  created?: () => number;
  /** Gives nonces; for tests. */
  nonce?: () => string;
}

/**
 * A fetch that signs whatever it sends, each time anew.
 *
 * A redirect is an error, or with `redirect: "manual"` an answer, and is never followed: fetch would
 * send the signature on to wherever it leads.
 */
export function signedFetch(
  keyId: string,
  secret: string,
  options?: SignedFetchOptions,
): (input: RequestInfo | URL, init?: RequestInit) => Promise<Response>;
