"use strict";
// Durable functions: context.step and what goes with it, over the public Lambda durable-execution protocol.
//
// The handler runs from its top each time, and what it did before is answered from the record. Where it has to wait, the
// promise it waits for never ends: the run is over, and another one follows.

const crypto = require("node:crypto");
const http = require("node:http");
const { encode } = require("./encoding.cjs");
const { CallError } = require("./guest.cjs");

const PREFIX = "/2025-12-01/durable-executions/";
const MAX_OUTPUT = 256 * 1024;
const MAX_ID = 64;
const MAX_BACKOFF_S = 3600;
const MAX_AT_ONCE = 32;
const NEVER = new Promise(() => {});
const SUSPENDED = Symbol("suspended");
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

/** An operation failed for good. `type` is the class of what was thrown. */
class StepError extends Error {
  constructor(error = {}) {
    super(error.ErrorMessage ?? "");
    this.name = "StepError";
    this.type = error.ErrorType ?? "Error";
    this.stackOfOther = error.StackTrace ?? [];
  }
}

/** What was waited for did not come in time. */
class WaitTimeout extends StepError {
  name = "WaitTimeout";
}

/** The platform could not record; the execution goes on in another run. */
class RunLost extends Error {}

class NonDeterministic extends Error {}

/** What is recorded, and the way to record more. Requests go one after the other: each answer has the next one's token. */
class Run {
  /** `ask` puts a question on the worker's own line; null: the way is HTTP. */
  constructor(event, requestId, ask) {
    this.arn = event.DurableExecutionArn;
    this.requestId = requestId;
    this.ask = ask;
    this.ended = false;
    this.token = event.CheckpointToken;
    this.operations = new Map();
    this.input = JSON.parse(event.InitialExecutionState.Operations[0].ExecutionDetails.InputPayload);
    this.last = Promise.resolve();
    this.take(event.InitialExecutionState.Operations);
    this.marker = event.InitialExecutionState.NextMarker;
  }

  async loadRest() {
    for (let marker = this.marker; marker; ) {
      const query = new URLSearchParams({ CheckpointToken: this.token, Marker: marker });
      const page = await this.question({ op: "operations", token: this.token, marker }, "GET", `state?${query}`);
      this.take(page.Operations);
      marker = page.NextMarker;
    }
  }

  take(operations) {
    for (const operation of operations) {
      this.operations.set(operation.Id, operation);
    }
  }

  /** Committed when the promise ends. */
  record(update) {
    const recorded = this.last.then(async () => {
      const body = JSON.stringify({ CheckpointToken: this.token, Updates: [update] });
      const answer = await this.question({ op: "checkpoint", brief: true }, "POST", "checkpoint", body);
      this.token = answer.CheckpointToken;
      this.take(answer.NewExecutionState.Operations);
    });
    this.last = recorded.catch(() => {});
    return recorded;
  }

  async question(head, method, what, body = "") {
    if (this.ended) {
      throw new RunLost("the run has ended");
    }
    if (this.ask === null) {
      return this.request(method, what, body);
    }
    const { status, body: told } = await this.ask(this.requestId, { ...head, arn: this.arn }, body || "null");
    if (status !== 200) {
      throw refusal(status, told);
    }
    return told;
  }

  request(method, what, body) {
    return new Promise((resolve, reject) => {
      const url = process.env.NOVA_API_URL;
      if (!url) {
        reject(new RunLost("this instance has no guest API, so nothing can be recorded"));
        return;
      }
      const headers = {
        "X-Nova-Request-Id": this.requestId,
        "Content-Type": "application/json",
        "Content-Length": Buffer.byteLength(body),
      };
      const path = `${PREFIX}${encodeURIComponent(this.arn)}/${what}`;
      const request = http.request(url, { method, path, headers, agent }, (response) => {
        const pieces = [];
        response.on("data", (piece) => pieces.push(piece));
        response.on("error", (error) => reject(new RunLost(error.message)));
        response.on("end", () => {
          const text = Buffer.concat(pieces).toString();
          response.statusCode === 200 ? resolve(JSON.parse(text)) : reject(refusal(response.statusCode, parsed(text)));
        });
      });
      request.on("error", (error) => reject(new RunLost(`the platform does not answer: ${error.message}`)));
      request.end(body);
    });
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // no answer of the protocol: its status has to do
  }
}

function refusal(status, told) {
  const message = String(told?.message ?? told?.detail ?? `status ${status}`);
  if (message.startsWith("Nova.NonDeterministic")) {
    return new NonDeterministic(message);
  }
  return [400, 413, 422].includes(status) ? new TypeError(message) : new RunLost(message);
}

/** The class of a durable function's context, out of that of any other. `describe` makes an error's type, text and stack. */
function contextClass(Context, describe) {
  const errorOf = (thrown) => {
    const { type, message, stack } = describe(thrown);
    const kind = thrown instanceof StepError ? thrown.type : type;
    return { ErrorType: kind, ErrorMessage: String(message).slice(0, 8192), StackTrace: stack };
  };

  return class DurableContext extends Context {
    constructor(context, run, parent = null) {
      super({});
      Object.assign(this, context);
      let stop;
      const stopped = new Promise((resolve) => {
        stop = resolve;
      });
      Object.defineProperty(this, "_", { value: { run, parent, stop, stopped, count: 0, randoms: 0 } });
    }

    static errorOf = errorOf;

    get StepError() {
      return StepError;
    }

    get WaitTimeout() {
      return WaitTimeout;
    }

    /** The id of the execution that this run belongs to. */
    get execution() {
      return this._.run.arn.slice(this._.run.arn.lastIndexOf("/") + 1);
    }

    /** `fn()`, once it has succeeded never again; a failure is tried again `retries` times. Rejects with StepError. */
    async step(name, fn, { retries = 3, backoffS = 1 } = {}) {
      const [place, known] = this.#at("STEP", "Step", name);
      const details = known?.StepDetails ?? {};
      switch (known?.Status) {
        case "SUCCEEDED":
          return valueOf(details);
        case "FAILED":
          throw new StepError(details.Error);
        case "PENDING":
          return this.#suspend();
      }
      place.StartTimestamp = Date.now();
      let text;
      try {
        text = kept(`the result of step '${name}'`, await fn());
      } catch (thrown) {
        const attempt = (details.Attempt ?? 0) + 1;
        const Error_ = errorOf(thrown);
        if (attempt <= retries) {
          const NextAttemptDelaySeconds = Math.min(backoffS * 2 ** Math.min(attempt - 1, 40), MAX_BACKOFF_S);
          await this.#record({ ...place, Action: "RETRY", Error: Error_, StepOptions: { NextAttemptDelaySeconds } });
          return this.#suspend();
        }
        await this.#record({ ...place, Action: "FAIL", Error: Error_ });
        throw new StepError(Error_);
      }
      await this.#record({ ...place, Action: "SUCCEED", Payload: text });
      return JSON.parse(text);
    }

    /** Waits, up to 365 days, without holding an instance. */
    async sleep(name, seconds) {
      const [place, known] = this.#at("WAIT", "Wait", name);
      if (known === undefined) {
        await this.#record({ ...place, Action: "START", WaitOptions: { WaitSeconds: seconds } });
      }
      if (known?.Status !== "SUCCEEDED") {
        return this.#suspend();
      }
    }

    /** The payload of the next event of this name that is sent to the execution. Rejects with WaitTimeout. */
    async waitEvent(name, { timeoutS = 0 } = {}) {
      return this.#awaited(await this.#callback("WaitEvent", name, { TimeoutSeconds: timeoutS }), "CallbackDetails");
    }

    /** `{ id, result() }` of something that an outsider completes. */
    async callback(name, { timeoutS = 0, heartbeatS = 0 } = {}) {
      const options = { TimeoutSeconds: timeoutS, HeartbeatTimeoutSeconds: heartbeatS };
      const id = await this.#callback("Callback", name, options);
      const result = () => this.#awaited(id, "CallbackDetails");
      return { id: this._.run.operations.get(id).CallbackDetails.CallbackId, result };
    }

    /** Calls another function; nothing is held while it runs. Rejects with CallError. */
    async invoke(name, payload, { name: label = name, qualifier } = {}) {
      const [place, known] = this.#at("CHAINED_INVOKE", "ChainedInvoke", label);
      if (known === undefined) {
        const FunctionName = qualifier === undefined ? name : `${name}:${qualifier}`;
        const Payload = kept(`the payload for '${name}'`, payload);
        await this.#record({ ...place, Action: "START", Payload, ChainedInvokeOptions: { FunctionName } });
      }
      try {
        return await this.#awaited(place.Id, "ChainedInvokeDetails");
      } catch (error) {
        const { type, message, stackOfOther: stack } = error;
        throw error instanceof StepError ? new CallError(502, { code: "function_error", error: { type, message, stack } }) : error;
      }
    }

    /** `fn(context)` with a context of its own, whose operations are recorded below it. */
    child(name, fn) {
      return this.#context("RunInChildContext", name, fn);
    }

    /** `fn(context, item)` for each, so many side by side. Rejects with the first failure when all have ended. */
    map(name, items, fn, { maxConcurrency = MAX_AT_ONCE } = {}) {
      const parts = [...items].map((item) => (below) => fn(below, item));
      return this.#many("Map", "MapIteration", name, parts, maxConcurrency);
    }

    /** `branch(context)` of each, side by side. Rejects with the first failure when all have ended. */
    parallel(name, branches, { maxConcurrency = MAX_AT_ONCE } = {}) {
      return this.#many("Parallel", "ParallelBranch", name, branches, maxConcurrency);
    }

    /** A Date: the time of the first run that came here. */
    async now() {
      const [place, known] = this.#at("STEP", "Now", "now");
      let text = known?.StepDetails.Result;
      if (known === undefined) {
        text = JSON.stringify(Date.now() / 1000);
        await this.#record({ ...place, Action: "SUCCEED", Payload: text });
      }
      return new Date(JSON.parse(text) * 1000);
    }

    /** From 0 up to 1, the same in each run; no two executions have the same. */
    random() {
      this._.randoms += 1;
      const seed = `${this._.run.arn}/${this._.parent}/${this._.randoms}`;
      return crypto.createHash("sha256").update(seed).digest().readUIntBE(0, 6) / 2 ** 48;
    }

    /** The operation at the next place as an update names it, and what is recorded there. */
    #at(Type, SubType, Name, number = (this._.count += 1)) {
      const { run, parent } = this._;
      let Id = parent === null ? String(number) : `${parent}-${number}`;
      if (Id.length > MAX_ID) {
        Id = crypto.createHash("sha256").update(Id).digest("hex");
      }
      const place = { Id, Type, SubType, Name, ...(parent === null ? {} : { ParentId: parent }) };
      const known = run.operations.get(Id);
      if (known !== undefined && (known.Type !== Type || known.SubType !== SubType || known.Name !== Name)) {
        const recorded = `${known.SubType} '${known.Name}' is recorded there`;
        throw this.#fatal(new NonDeterministic(`Nova.NonDeterministic: operation ${Id} is ${SubType} '${Name}', and ${recorded}`));
      }
      return [place, known];
    }

    async #record(update) {
      try {
        await this._.run.record(update);
      } catch (error) {
        if (error instanceof TypeError) {
          throw error;
        }
        this.#fatal(error);
        await NEVER;
      }
    }

    #fatal(error) {
      this._.run.fatal(error);
      return error;
    }

    #suspend() {
      this._.stop(SUSPENDED);
      return NEVER;
    }

    async #callback(SubType, name, CallbackOptions) {
      const [place, known] = this.#at("CALLBACK", SubType, name);
      if (known === undefined) {
        await this.#record({ ...place, Action: "START", CallbackOptions });
      }
      return place.Id;
    }

    /** The result of what others end. */
    async #awaited(id, details) {
      const operation = this._.run.operations.get(id);
      const told = operation[details] ?? {};
      switch (operation.Status) {
        case "SUCCEEDED":
          return valueOf(told);
        case "TIMED_OUT":
          throw new WaitTimeout(told.Error);
        case "FAILED":
        case "STOPPED":
        case "CANCELLED":
          throw new StepError(told.Error);
      }
      return this.#suspend();
    }

    async #context(subType, name, fn, number) {
      const [place, known] = this.#at("CONTEXT", subType, name, number);
      if (known !== undefined && known.Status !== "STARTED") {
        const done = doneOf(known);
        if (done !== null) {
          return done.value;
        }
      }
      const below = new DurableContext(this, this._.run, place.Id);
      let value;
      try {
        value = await Promise.race([fn(below), below._.stopped]);
      } catch (thrown) {
        const Error_ = errorOf(thrown);
        await this.#record({ ...place, Action: "FAIL", Error: Error_ });
        throw new StepError(Error_);
      }
      return value === SUSPENDED ? this.#suspend() : this.#keep(place, known, encode(value));
    }

    async #many(subType, each, name, parts, limit) {
      if (!(limit >= 1)) {
        throw new RangeError("maxConcurrency: at least 1");
      }
      const [place, known] = this.#at("CONTEXT", subType, name);
      if (known !== undefined && known.Status !== "STARTED") {
        const done = doneOf(known);
        if (done !== null) {
          return done.value;
        }
      }
      const outcomes = new Array(parts.length);
      let next = 0;
      const work = async () => {
        while (next < parts.length) {
          const number = next++;
          const owner = new DurableContext(this, this._.run, place.Id);
          const branch = owner.#context(each, `${name}[${number}]`, parts[number], number + 1);
          outcomes[number] = await Promise.race([branch, owner._.stopped]).then(
            (value) => ({ value }),
            (thrown) => ({ thrown }),
          );
        }
      };
      await Promise.all(Array.from({ length: Math.min(limit, parts.length) }, work));
      if (outcomes.some(({ value }) => value === SUSPENDED)) {
        return this.#suspend();
      }
      const failed = outcomes.find((outcome) => "thrown" in outcome);
      if (failed !== undefined) {
        const Error_ = errorOf(failed.thrown);
        await this.#record({ ...place, Action: "FAIL", Error: Error_ });
        throw new StepError(Error_);
      }
      return this.#keep(place, known, encode(outcomes.map(({ value }) => value)));
    }

    async #keep(place, known, text) {
      if (known === undefined || known.Status === "STARTED") {
        const large = Buffer.byteLength(text) > MAX_OUTPUT;
        const result = large ? { ContextOptions: { ReplayChildren: true } } : { Payload: text };
        await this.#record({ ...place, Action: "SUCCEED", ...result });
      }
      return JSON.parse(text);
    }
  };
}

/** The recorded result; null: it has to be made again from the operations below. Throws what it ended with. */
function doneOf(known) {
  if (known.Status !== "SUCCEEDED") {
    throw new StepError(known.ContextDetails.Error);
  }
  return known.ContextDetails.ReplayChildren ? null : { value: valueOf(known.ContextDetails) };
}

function valueOf(details) {
  return details.Result === undefined ? null : JSON.parse(details.Result);
}

function kept(what, value) {
  const text = encode(value);
  if (Buffer.byteLength(text) > MAX_OUTPUT) {
    throw new RangeError(`${what} is larger than ${MAX_OUTPUT} bytes`);
  }
  return text;
}

/** The handler of one run, out of a handler that knows nothing of runs. */
function wrap(handler, Context, describe, ask) {
  const DurableContext = contextClass(Context, describe);
  return async (event, context) => {
    const run = new Run(event, context.requestId, context.asks ? ask : null);
    await run.loadRest();
    const own = new DurableContext(context, run);
    const fatal = new Promise((_, reject) => {
      run.fatal = reject;
    });
    fatal.catch(() => {});
    try {
      const value = await Promise.race([(async () => handler(run.input, own))(), own._.stopped, fatal]);
      return value === SUSPENDED ? { Status: "PENDING" } : { Status: "SUCCEEDED", Result: encode(value) };
    } catch (thrown) {
      if (thrown instanceof RunLost) {
        throw thrown;
      }
      if (thrown instanceof NonDeterministic) {
        return { Status: "FAILED", Error: { ErrorType: "Nova.NonDeterministic", ErrorMessage: thrown.message } };
      }
      return { Status: "FAILED", Error: DurableContext.errorOf(thrown) };
    } finally {
      run.ended = true;
    }
  };
}

module.exports = { wrap };
