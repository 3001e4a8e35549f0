"use strict";
// The Node.js worker: boots without a function, waits for its init line on descriptor 3, then answers calls on 4.

const { AsyncLocalStorage } = require("node:async_hooks");
const fs = require("node:fs");
const Module = require("node:module");
const net = require("node:net");
const path = require("node:path");
const { pathToFileURL } = require("node:url");
const { OUTPUT_LIMIT, encode } = require("./encoding.cjs");
const guest = require("./guest.cjs");
const { Pieces, isStream } = require("./pieces.cjs");

const STACK_LINES = 64;
const PRINT_LIMIT = 512 * 1024;
const REGION = "local";
const ENDING = '{"ending": true}\n';
const ESM_SYNTAX = /^\s*(?:import\s*[\w{*"']|export\s)/m;

const input = new net.Socket({ fd: 3, readable: true, writable: false });
const result = new net.Socket({ fd: 4, readable: false, writable: true });
const currentCall = new AsyncLocalStorage();
const inFlight = new Map();

let codeDir = "";
let handler = null;
let takesCallback = false;
let multiplex = false;

class Context {
  constructor(call) {
    this.requestId = this.awsRequestId = call.request_id;
    this.functionName = call.function_name;
    this.functionId = call.function_id;
    this.functionVersion = call.function_version;
    this.memoryLimitMb = call.memory_limit_mb;
    this.memoryLimitInMB = String(call.memory_limit_mb);
    this.timeoutS = call.timeout_s;
    this.deadlineMs = call.deadline_ms;
    this.runtime = call.runtime;
    this.mode = call.mode;
    this.tenant = call.tenant;
    this.namespace = call.namespace;
    this.traceparent = this.trace = call.traceparent;
    this.tracestate = call.tracestate;
    this.attempt = call.attempt;
    Object.defineProperty(this, "asks", { value: call.asks === true });
    this.callChain = call.call_chain ?? [];
    this.callDepth = this.callChain.length;
    this.callerFunction = call.caller_function ?? null;
    this.identity = undefined;
    this.clientContext = undefined;
    this.callbackWaitsForEmptyEventLoop = true;
  }

  get invokedFunctionArn() {
    return `arn:nova:lambda:${REGION}:${this.tenant}:function:${this.functionName}:${this.functionVersion}`;
  }

  get logGroupName() {
    return process.env.AWS_LAMBDA_LOG_GROUP_NAME;
  }

  get logStreamName() {
    return process.env.AWS_LAMBDA_LOG_STREAM_NAME;
  }

  get CallError() {
    return guest.CallError;
  }

  /** What the function keeps between its calls. */
  get state() {
    return new guest.State(this.requestId);
  }

  /**
   * Calls another function of this tenant and namespace; a promise of its result. Options: qualifier, idempotencyKey,
   * event (put it into the queue instead). It has what is left of this call's time, and ends with it.
   */
  invoke(name, payload, options) {
    return guest.invoke(this.requestId, name, payload, options);
  }

  publish(topic, payload, options) {
    return guest.publish(this.requestId, topic, payload, options);
  }

  /** An AbortSignal that fires when the caller has gone or the time is up. */
  get signal() {
    const call = inFlight.get(this.requestId) ?? {};
    call.aborter ??= new AbortController();
    return call.aborter.signal;
  }

  /** Milliseconds until the call is ended; never negative. */
  getRemainingTimeInMillis() {
    return Math.max(0, this.deadlineMs - Date.now());
  }

  /**
   * Send a piece of the answer: text, bytes, or a value. The promise ends when the next one may come; handlers that send
   * much should await it. In a call that does not stream the pieces become the result.
   */
  write(piece) {
    const call = inFlight.get(this.requestId);
    if (call === undefined) {
      throw new Error("the call has ended");
    }
    return call.pieces.send(piece);
  }

  log(message) {
    process.stderr.write(`${message}\n`);
  }
}

// -- answers --------------------------------------------------------------------------------------------------------

function send(line) {
  result.write(line);
}

function tagOf(id) {
  return multiplex ? `"request_id": "${id}", ` : "";
}

function sendError(id, type, message, stack = []) {
  const error = JSON.stringify({ type, message: String(message).slice(0, 8192), stack });
  send(`{${tagOf(id)}"error": ${error}}\n`);
}

function sendException(id, thrown) {
  const { type, message, stack } = describe(thrown);
  sendError(id, type, message, stack);
}

function describe(thrown) {
  if (!(thrown instanceof Error)) {
    return { type: "Error", message: typeof thrown === "string" ? thrown : safeString(thrown), stack: [] };
  }
  const type = thrown.initError ? "Nova.InitError" : thrown.notJson ? "Nova.InvalidOutput" : thrown.constructor?.name || thrown.name || "Error";
  return { type, message: thrown.message, stack: stackOf(thrown) };
}

function safeString(value) {
  try {
    return JSON.stringify(value) ?? String(value);
  } catch {
    return Object.prototype.toString.call(value);
  }
}

/** `index.js:12 in name`, outermost first, without Node's and this file's frames. */
function stackOf(error) {
  const lines = [];
  for (const line of String(error.stack ?? "").split("\n")) {
    const match = /^\s+at (?:(.*?) \()?(?:file:\/\/)?([^()]+?):(\d+):\d+\)?$/.exec(line);
    if (match && !match[2].startsWith("node:") && !match[2].startsWith(__dirname)) {
      const file = match[2].startsWith(codeDir + "/") ? match[2].slice(codeDir.length + 1) : match[2];
      lines.push(`${file}:${match[3]} in ${match[1] || "<anonymous>"}`.slice(0, 512));
    }
  }
  return lines.reverse().slice(-STACK_LINES);
}

function sendValue(id, value) {
  let text;
  try {
    text = encode(value);
  } catch (error) {
    sendError(id, "Nova.InvalidOutput", `the result is not JSON: ${error.message}`);
    return;
  }
  const size = text.length > OUTPUT_LIMIT / 3 ? Buffer.byteLength(text) : 0;
  if (size > OUTPUT_LIMIT) {
    sendError(id, "Nova.OutputTooLarge", `the result has ${size} bytes; the limit is ${OUTPUT_LIMIT}`);
  } else {
    send(`{${tagOf(id)}"output": ${text}}\n`);
  }
}

// -- questions to the host ------------------------------------------------------------------------------------------

const asked = new Map();
let questions = 0;

/** Ask on this worker's own line, past the agent: a promise of `{ status, body }`. For calls whose context has `asks`. */
function ask(requestId, head, body) {
  const number = (questions += 1);
  send(`{"ask": {"number": ${number}, "request_id": "${requestId}", "head": ${JSON.stringify(head)}, "body": ${body}}}\n`);
  return new Promise((resolve) => asked.set(number, resolve));
}

function told({ told: number, status, body }) {
  asked.get(number)?.({ status, body });
  asked.delete(number);
}

// -- loading --------------------------------------------------------------------------------------------------------

class InitError extends Error {
  initError = true;
}

async function load(init) {
  codeDir = init.code_dir;
  for (const name of Object.keys(process.env)) {
    if (!(name in init.env)) {
      delete process.env[name];
    }
  }
  Object.assign(process.env, init.env);
  Module._initPaths(); // NODE_PATH may be another now
  process.chdir(codeDir);
  process.argv = [process.argv[0], init.entry];
  multiplex = init.concurrency > 1 && init.mode !== "process";
  if (multiplex) {
    tagPrints("stdout");
    tagPrints("stderr");
  }
  const exported = await importEntry(init);
  handler = find(exported, init.handler);
  takesCallback = handler.length > 2;
  if (init.mode === "durable") {
    if (takesCallback) {
      throw new InitError(`handler '${init.handler}' of a durable function answers by a promise, not by a callback`);
    }
    handler = require("./durable.cjs").wrap(handler, Context, describe, multiplex ? null : ask);
  }
  const onInit = exported.onInit ?? exported.default?.onInit;
  if (typeof onInit === "function") {
    await onInit(initContext(init));
  }
}

async function importEntry(init) {
  let source;
  try {
    source = fs.readFileSync(init.entry, "utf8");
  } catch {
    const name = path.relative(codeDir, init.entry);
    throw new InitError(`handler '${init.handler}' does not exist: there is no file ${name} in the code`);
  }
  if (isModule(init.entry, source)) {
    return await import(pathToFileURL(init.entry).href);
  }
  return Module.createRequire(init.entry)(init.entry);
}

function isModule(file, source) {
  if (file.endsWith(".mjs")) {
    return true;
  }
  if (file.endsWith(".cjs")) {
    return false;
  }
  for (let folder = path.dirname(file); folder.startsWith(codeDir); folder = path.dirname(folder)) {
    const description = path.join(folder, "package.json");
    if (fs.existsSync(description)) {
      const { type } = JSON.parse(fs.readFileSync(description, "utf8"));
      return type === "module" || (type === undefined && ESM_SYNTAX.test(source));
    }
  }
  return ESM_SYNTAX.test(source);
}

/** The named export, or the module itself or its default when that is a function. */
function find(exported, wanted) {
  const name = wanted.slice(wanted.lastIndexOf(".") + 1);
  const candidates = [exported[name], exported.default?.[name], exported, exported.default];
  const found = candidates.find((candidate) => typeof candidate === "function");
  if (!found) {
    throw new InitError(`handler '${wanted}' does not exist: the module exports no function '${name}'`);
  }
  return found;
}

function initContext({ env }) {
  return new Context({
    request_id: "",
    function_name: env.NOVA_FUNCTION_NAME,
    function_id: env.NOVA_FUNCTION_ID,
    function_version: env.NOVA_FUNCTION_VERSION,
    memory_limit_mb: Number(env.NOVA_MEMORY_LIMIT_MB),
    timeout_s: Number(env.NOVA_TIMEOUT_S),
    runtime: env.NOVA_RUNTIME,
    mode: env.NOVA_MODE,
    tenant: env.NOVA_TENANT,
    namespace: env.NOVA_NAMESPACE,
  });
}

/**
 * Prints of a call travel with its id; what is printed outside any call goes to the pipe. Beyond PRINT_LIMIT only the
 * size travels: the host would cut the text anyway, and here it would wait in memory.
 */
function tagPrints(name) {
  const stream = process[name];
  const write = stream.write.bind(stream);
  stream.write = (data, encoding, done) => {
    const call = inFlight.get(currentCall.getStore());
    if (call === undefined) {
      return write(data, encoding, done);
    }
    const text = typeof data === "string" ? data : Buffer.from(data).toString();
    if (call.printed[name] > PRINT_LIMIT) {
      call.dropped[name] += Buffer.byteLength(text);
    } else {
      call.printed[name] += text.length;
      sendLog(currentCall.getStore(), name, text, 0);
    }
    const callback = typeof encoding === "function" ? encoding : done;
    if (callback) {
      process.nextTick(callback);
    }
    return true;
  };
}

function sendLog(id, stream, text, dropped) {
  send(`${JSON.stringify({ log: { request_id: id, stream, text, dropped } })}\n`);
}

function sendDropped(id, { dropped }) {
  for (const [stream, bytes] of Object.entries(dropped)) {
    if (bytes > 0) {
      sendLog(id, stream, "", bytes);
    }
  }
}

// -- calls ----------------------------------------------------------------------------------------------------------

function begin({ input: event, context: call }) {
  const id = call.request_id;
  if (!multiplex) {
    asked.clear(); // what a call before has asked and not awaited
  }
  inFlight.set(id, {
    aborter: null,
    pieces: new Pieces(result, tagOf(id), multiplex ? call.stream_credit : undefined),
    printed: { stdout: 0, stderr: 0 },
    dropped: { stdout: 0, stderr: 0 },
  });
  if (multiplex) {
    currentCall.run(id, serve, id, event, new Context(call));
    return;
  }
  process.env.NOVA_REQUEST_ID = id;
  process.env.NOVA_TRACE_PARENT = process.env.TRACEPARENT = call.traceparent ?? "";
  process.env.TRACESTATE = call.tracestate ?? "";
  serve(id, event, new Context(call));
}

function serve(id, event, context) {
  const { pieces } = inFlight.get(id);
  const settle = (error, value) => {
    const call = inFlight.get(id);
    if (call === undefined || call.settled) {
      return;
    }
    call.settled = true;
    if (error === null && isStream(value)) {
      pieces.each(value).then((rest) => end(null, rest), (thrown) => end(thrown ?? new Error(String(thrown))));
    } else if (pieces.queue.length > 0) {
      pieces.gone().then(() => end(error, value));
    } else {
      end(error, value);
    }
  };
  const end = (error, value) => {
    const call = inFlight.get(id);
    if (call !== undefined) {
      sendDropped(id, call);
      inFlight.delete(id);
      if (pieces.stopped) {
        sendError(id, "Nova.Cancelled", "the call was cancelled");
      } else {
        error === null ? sendValue(id, value) : sendException(id, error);
      }
    }
  };
  const callback = (error, value) => settle(error ?? null, value);
  let returned;
  try {
    returned = handler(event, context, callback);
  } catch (thrown) {
    settle(thrown ?? new Error(String(thrown)));
    return;
  }
  if (typeof returned?.then === "function") {
    returned.then(
      (value) => settle(null, value),
      (thrown) => settle(thrown ?? new Error(String(thrown))),
    );
  } else if (!takesCallback) {
    settle(null, returned);
  }
}

/** An error that no handler caught leaves the process in an unknown state: say so, answer, then end. */
function die(thrown) {
  const own = currentCall.getStore();
  const ids = own !== undefined && inFlight.has(own) ? [own] : [...inFlight.keys()];
  const last = ids.pop();
  for (const id of ids) {
    inFlight.delete(id);
    sendException(id, thrown);
  }
  if (last === undefined) {
    process.stderr.write(`${thrown?.stack ?? thrown}\n`);
    send(ENDING);
  } else {
    inFlight.delete(last);
    send(ENDING);
    sendException(last, thrown);
  }
  result.end(() => process.exit(1));
}

function take(line) {
  const message = JSON.parse(line);
  if (message.context) {
    begin(message);
  } else if (message.told) {
    told(message);
  } else if (message.cancel) {
    const call = inFlight.get(message.cancel);
    call?.aborter?.abort();
    call?.pieces.cancel();
  } else if (message.credit) {
    const pieces = inFlight.get(message.credit)?.pieces;
    if (pieces !== undefined) {
      pieces.credit += message.bytes;
      pieces.goOn();
    }
  } else if (message.init) {
    const began = process.hrtime.bigint();
    load(message.init).then(
      () => {
        const concurrency = multiplex ? message.init.concurrency : 1;
        const import_us = Number((process.hrtime.bigint() - began) / 1000n);
        send(`${JSON.stringify({ ready: { concurrency, multiplex, import_us } })}\n`);
      },
      (thrown) => {
        const { type, message: text, stack } = describe(thrown);
        send(JSON.stringify({ error: { type, message: text, stack } }) + "\n");
        result.end(() => process.exit(1));
      },
    );
  }
}

// Read by handlers that were written for it, and by no one else.
Object.defineProperty(globalThis, "awslambda", { get: () => require("./lambda_streams.cjs"), configurable: true });

// Prints go out before the answer, and a handler that prints faster than the host reads waits instead of filling memory.
for (const stream of [process.stdout, process.stderr]) {
  stream._handle?.setBlocking?.(true);
}

let pieces = [];
input.on("data", (data) => {
  let start = 0;
  for (let end = data.indexOf(10); end >= 0; end = data.indexOf(10, start)) {
    pieces.push(data.subarray(start, end));
    const line = pieces.length === 1 ? pieces[0] : Buffer.concat(pieces);
    pieces = [];
    start = end + 1;
    take(line.toString());
  }
  if (start < data.length) {
    pieces.push(data.subarray(start));
  }
});
for (const event of ["end", "error"]) {
  input.on(event, () => process.exit(0));
}
result.on("error", () => process.exit(0));
result.on("drain", () => {
  for (const { pieces } of inFlight.values()) {
    pieces.goOn();
  }
});
Error.stackTraceLimit = 30;
process.on("uncaughtException", die);
process.on("unhandledRejection", die);
