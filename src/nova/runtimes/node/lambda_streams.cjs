"use strict";
// Handlers written for Lambda's response streaming: awslambda.streamifyResponse and HttpResponseStream.

const { Writable } = require("node:stream");

/** What such a handler writes to. A head goes out as the first piece, which function URLs answer with. */
class ResponseStream extends Writable {
  constructor(context) {
    super({ decodeStrings: false });
    this.context = context;
    this.head = null;
  }

  setContentType(type) {
    this.head = { ...this.head, statusCode: this.head?.statusCode ?? 200 };
    this.head.headers = { ...this.head.headers, "content-type": type };
  }

  _write(chunk, encoding, done) {
    const text = typeof chunk === "string" && (encoding === "utf8" || encoding === "utf-8");
    this.send(text || typeof chunk !== "string" ? chunk : Buffer.from(chunk, encoding)).then(() => done(), done);
  }

  _final(done) {
    this.sendHead().then(() => done(), done);
  }

  async send(piece) {
    await this.sendHead();
    await this.context.write(piece);
  }

  async sendHead() {
    const { head } = this;
    this.head = null;
    if (head !== null) {
      await this.context.write(head);
    }
  }
}

/** The answer ends when the handler has returned and its stream has been ended, which returning does where it is not. */
function streamifyResponse(handler) {
  return async (event, context) => {
    const stream = new ResponseStream(context);
    const ended = new Promise((resolve, reject) => stream.once("finish", resolve).once("error", reject));
    ended.catch(() => {});
    await handler(event, stream, context);
    if (!stream.writableEnded) {
      stream.end();
    }
    await ended;
  };
}

const HttpResponseStream = {
  /** `stream` with a status, headers and cookies before its first byte. */
  from(stream, { statusCode = 200, headers = {}, cookies } = {}) {
    stream.head = { statusCode, headers: { ...stream.head?.headers, ...headers }, ...(cookies && { cookies }) };
    return stream;
  },
};

module.exports = { HttpResponseStream, streamifyResponse };
