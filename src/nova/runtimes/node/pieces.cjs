"use strict";
// An answer piece by piece: what generators and streams yield and what context.write is given, as lines to the host.

const { NotJson, OUTPUT_LIMIT, encodePiece } = require("./encoding.cjs");

const PIECE_CUT = 1 << 16;
const PIECE_OVERHEAD = 64; // credit that a piece costs beside its data; the host reckons alike

/**
 * The pieces of one call. Without credit, or while the host does not read, they wait here and so do promises of `send`:
 * a reader who is slow holds up its own call alone.
 */
class Pieces {
  constructor(output, tag, credit) {
    this.output = output;
    this.tag = tag;
    this.credit = credit ?? Infinity;
    this.queue = [];
    this.waiting = [];
    this.stopped = false;
  }

  send(piece) {
    if (this.stopped) {
      return Promise.reject(new Error("the call was cancelled"));
    }
    if (typeof piece === "string") {
      for (const part of cut(piece)) {
        this.queue.push(["text", encodePiece(part)]);
      }
    } else if (piece instanceof Uint8Array) {
      const bytes = Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength);
      for (let start = 0; start < bytes.length || start === 0; start += PIECE_CUT) {
        this.queue.push(["b64", `"${bytes.subarray(start, start + PIECE_CUT).toString("base64")}"`]);
      }
    } else {
      const data = encodePiece(piece);
      if (data.length > OUTPUT_LIMIT / 3 && Buffer.byteLength(data) > OUTPUT_LIMIT) {
        throw new NotJson(`the piece is larger than ${OUTPUT_LIMIT} bytes`);
      }
      this.queue.push(["json", data]);
    }
    this.goOn();
    return this.gone();
  }

  /** Ends when every piece has left. */
  gone() {
    return this.queue.length === 0 ? Promise.resolve() : new Promise((resolve) => this.waiting.push(resolve));
  }

  goOn() {
    while (this.queue.length > 0 && this.credit > 0 && !this.output.writableNeedDrain) {
      const [enc, data] = this.queue.shift();
      this.credit -= Buffer.byteLength(data) + PIECE_OVERHEAD;
      this.output.write(`{${this.tag}"chunk": {"enc": "${enc}", "data": ${data}}}\n`);
    }
    if (this.queue.length === 0) {
      for (const resolve of this.waiting.splice(0)) {
        resolve();
      }
    }
  }

  /** Send what a generator or stream yields; returns what a generator returns. */
  async each(source) {
    const iterator = source[Symbol.asyncIterator]?.() ?? source[Symbol.iterator]();
    let ended = false;
    this.stop = () => iterator.return?.();
    try {
      while (!this.stopped) {
        const { done, value } = await iterator.next();
        if (done) {
          ended = true;
          return value;
        }
        await this.send(value);
      }
    } finally {
      if (!ended) {
        await iterator.return?.();
      }
    }
  }

  /** The caller has gone. */
  cancel() {
    this.stopped = true;
    this.queue = [];
    this.goOn();
    Promise.resolve(this.stop?.()).catch(() => {});
  }
}

/** Pieces of a text, cut between characters. */
function* cut(text) {
  if (text.length <= PIECE_CUT) {
    yield text;
    return;
  }
  for (let start = 0; start < text.length; ) {
    let end = Math.min(start + PIECE_CUT, text.length);
    if (end < text.length && text.charCodeAt(end - 1) >= 0xd800 && text.charCodeAt(end - 1) < 0xdc00) {
      end -= 1;
    }
    yield text.slice(start, end);
    start = end;
  }
}

/** A generator's object, a Readable or a ReadableStream; arrays, strings and maps are values. */
function isStream(value) {
  return (
    typeof value === "object" &&
    value !== null &&
    (typeof value[Symbol.asyncIterator] === "function" ||
      (typeof value[Symbol.iterator] === "function" && typeof value.next === "function"))
  );
}

module.exports = { Pieces, isStream };
