"use strict";
// Values as JSON text.

const OUTPUT_LIMIT = 6 * 1024 * 1024;
const HALF_PAIR = /(?:^|[^\\])(?:\\\\)*\\ud[89a-f]/;

/** Result as JSON text. Throws TypeError for what JSON cannot hold, NaN and Infinity included. */
function encode(value) {
  if (value === undefined) {
    return "null";
  }
  if (value instanceof Uint8Array) {
    return JSON.stringify(binary(value));
  }
  const text = JSON.stringify(value);
  if (text === undefined) {
    throw new TypeError(`a ${typeof value} cannot be written as JSON`);
  }
  if (text.includes("\\ud") && HALF_PAIR.test(text)) {
    throw new TypeError("it has half a surrogate pair");
  }
  // NaN came out as null, a nested Buffer as numbers: look again only where that may have happened.
  return text.includes("null") || text.includes('"type":"Buffer"') ? JSON.stringify(value, strict) : text;
}

function strict(key, value) {
  const original = this[key];
  if (typeof original === "number" && !Number.isFinite(original)) {
    throw new TypeError(`${original} cannot be written as JSON`);
  }
  return original instanceof Uint8Array ? binary(original) : value;
}

function binary(bytes) {
  return { b64: Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64") };
}

class NotJson extends TypeError {
  notJson = true;
}

function encodePiece(piece) {
  try {
    return encode(piece);
  } catch (error) {
    throw new NotJson(`the piece is not JSON: ${error.message}`);
  }
}

module.exports = { NotJson, OUTPUT_LIMIT, encode, encodePiece };
