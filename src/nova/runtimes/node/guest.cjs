"use strict";
// context.invoke and context.state: the guest API of the instance, as promises.

const net = require("node:net");

/**
 * What was asked for was refused, or the called function failed. `code` is the problem's, such as "not_found",
 * "version_conflict", "recursion"; "function_error" when the called function threw, and then `type` is its error's.
 */
class CallError extends Error {
  constructor(status, problem) {
    const error = problem.error ?? {};
    super(error.message ?? problem.detail ?? `status ${status}`);
    this.name = "CallError";
    this.status = status;
    this.code = problem.code ?? "internal";
    this.type = error.type ?? null;
    this.stackOfOther = error.stack ?? [];
    this.problem = problem;
  }
}

function ask(method, path, requestId, { query = {}, headers = {}, body } = {}) {
  const url = process.env.NOVA_API_URL;
  if (!url) {
    return Promise.reject(new CallError(422, { code: "unsupported", detail: "this instance has no guest API" }));
  }
  const { hostname, port, host } = new URL(url);
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  const target = encodeURI(path).replace(/[?#]/g, encodeURIComponent) + (given.length ? `?${new URLSearchParams(given)}` : "");
  const data = body === undefined ? Buffer.alloc(0) : Buffer.from(body);
  const lines = [
    `${method} ${target} HTTP/1.1`,
    `Host: ${host}`,
    `Authorization: Bearer ${process.env.NOVA_API_TOKEN ?? ""}`,
    `X-Nova-Request-Id: ${requestId}`,
    "Connection: close",
  ];
  for (const [name, value] of Object.entries(headers)) {
    if (value !== undefined && value !== null) {
      if (/[\r\n]/.test(String(value))) {
        return Promise.reject(new TypeError("a header cannot hold a line break"));
      }
      lines.push(`${name}: ${value}`);
    }
  }
  if (body !== undefined) {
    lines.push(`Content-Length: ${data.length}`);
  }
  return exchange(Number(port), hostname, Buffer.concat([Buffer.from(`${lines.join("\r\n")}\r\n\r\n`), data]));
}

function exchange(port, host, data) {
  return new Promise((resolve, reject) => {
    const pieces = [];
    const socket = net.connect({ port, host });
    socket.on("data", (piece) => pieces.push(piece));
    socket.on("error", reject);
    socket.on("end", () => {
      socket.destroy();
      try {
        resolve(parse(Buffer.concat(pieces)));
      } catch (error) {
        reject(error);
      }
    });
    socket.write(data);
  });
}

function parse(data) {
  const end = data.indexOf("\r\n\r\n");
  if (end < 0) {
    throw new CallError(502, { code: "instance_lost", detail: "the guest API did not answer" });
  }
  const [first, ...rest] = data.toString("latin1", 0, end).split("\r\n");
  const headers = Object.fromEntries(
    rest.map((line) => [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 1).trim()]),
  );
  return { status: Number(first.split(" ")[1]), headers, text: data.toString("utf8", end + 4) };
}

function good(answer) {
  if (answer.status < 300) {
    return answer;
  }
  let problem = {};
  try {
    problem = JSON.parse(answer.text);
  } catch {
    // an answer that is none of ours: its status has to do
  }
  throw new CallError(answer.status, problem);
}

function encode(value) {
  return JSON.stringify(value === undefined ? null : value);
}

async function invoke(requestId, name, payload, { qualifier, event = false, idempotencyKey } = {}) {
  const answer = await ask("POST", `/v1/invoke/${name}`, requestId, {
    query: { qualifier, type: event ? "event" : undefined },
    headers: { "Idempotency-Key": idempotencyKey },
    body: encode(payload),
  });
  return JSON.parse(good(answer).text);
}

/** Publishes a message, visible when the call succeeds; its id. */
async function publish(requestId, topic, payload, { orderingKey, dedupId, delayS, headers } = {}) {
  const answer = await ask("POST", `/v1/topics/${topic}`, requestId, {
    query: {
      ordering_key: orderingKey,
      dedup_id: dedupId,
      delay_s: delayS,
      headers: headers === undefined ? undefined : JSON.stringify(headers),
    },
    body: encode(payload),
  });
  return JSON.parse(good(answer).text).id;
}

/** What the function keeps between its calls, whichever version or instance runs. Values are JSON, at most 256 KiB. */
class State {
  #requestId;

  constructor(requestId) {
    this.#requestId = requestId;
  }

  #ask(method, key, more) {
    if (typeof key !== "string" || key === "") {
      return Promise.reject(new TypeError("a key is a text of at least one character"));
    }
    return ask(method, `/v1/state/${key}`, this.#requestId, more);
  }

  /** The value; `otherwise` when there is none. */
  async get(key, otherwise = undefined) {
    const answer = await this.#ask("GET", key);
    return answer.status === 404 ? otherwise : JSON.parse(good(answer).text);
  }

  /** `{ value, version }`; null when there is no such key. */
  async read(key) {
    const answer = await this.#ask("GET", key);
    if (answer.status === 404) {
      return null;
    }
    return { value: JSON.parse(good(answer).text), version: Number(answer.headers["x-nova-version"]) };
  }

  /** Keeps a value; its new version. `expectedVersion`: only over that version, 0 only if there is none. */
  async put(key, value, { ttlS, expectedVersion } = {}) {
    const headers = { "X-Nova-TTL": ttlS, "If-Match": expectedVersion };
    return JSON.parse(good(await this.#ask("PUT", key, { headers, body: encode(value) })).text).version;
  }

  /** False when there was no such key. */
  async delete(key, { expectedVersion } = {}) {
    const answer = await this.#ask("DELETE", key, { headers: { "If-Match": expectedVersion } });
    return answer.status === 404 ? false : Boolean(good(answer));
  }

  /** Adds to a whole number in one step (0 when there is none); the sum. */
  async increment(key, by = 1, { ttlS } = {}) {
    const answer = await this.#ask("POST", key, { query: { by }, headers: { "X-Nova-TTL": ttlS }, body: "" });
    return JSON.parse(good(answer).text);
  }

  /** Keys in order, each `{ key, size, version, expires_at, updated_at }`; at most 1000, those behind `after`. */
  async list(prefix = "", { limit = 100, after } = {}) {
    const answer = await ask("GET", "/v1/state", this.#requestId, { query: { prefix, limit, after } });
    return JSON.parse(good(answer).text).items;
  }
}

module.exports = { CallError, State, invoke, publish };
