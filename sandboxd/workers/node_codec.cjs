'use strict';
// msgpack, as much of it as frames need.

/** Return a value (null, boolean, number, string, bytes, array, plain object) as msgpack. */
function pack(value) {
  const parts = [];
  packInto(value, parts);
  return Buffer.concat(parts);
}

function packInto(value, parts) {
  if (value === null || value === undefined) parts.push(Buffer.from([0xc0]));
  else if (typeof value === 'boolean') parts.push(Buffer.from([value ? 0xc3 : 0xc2]));
  else if (typeof value === 'number') parts.push(packNumber(value));
  else if (typeof value === 'string') {
    const raw = Buffer.from(value, 'utf8');
    parts.push(header(raw.length, 0xa0, 32, 0xd9), raw);
  } else if (value instanceof Uint8Array) parts.push(header(value.length, 0, 0, 0xc4), value);
  else if (Array.isArray(value)) {
    parts.push(header(value.length, 0x90, 16, 0xdb));
    for (const item of value) packInto(item, parts);
  } else {
    const entries = Object.entries(value);
    parts.push(header(entries.length, 0x80, 16, 0xdd));
    for (const [key, item] of entries) {
      packInto(key, parts);
      packInto(item, parts);
    }
  }
}

function packNumber(value) {
  const small = Number.isInteger(value) && value >= 0 && value < 128;
  if (small) return Buffer.from([value]);
  const buffer = Buffer.alloc(9);
  if (Number.isSafeInteger(value) && !Object.is(value, -0)) {
    buffer[0] = value < 0 ? 0xd3 : 0xcf;
    if (value < 0) buffer.writeBigInt64BE(BigInt(value), 1);
    else buffer.writeBigUInt64BE(BigInt(value), 1);
  } else {
    buffer[0] = 0xcb;
    buffer.writeDoubleBE(value, 1);
  }
  return buffer;
}

/** `first` is the code of the form with a length of one byte; arrays and maps have none, theirs begins one before. */
function header(size, fix, fixBelow, first) {
  if (size < fixBelow) return Buffer.from([fix | size]);
  const hasByte = first === 0xd9 || first === 0xc4;
  if (size < 256 && hasByte) return Buffer.from([first, size]);
  if (size < 65536) return Buffer.from([first + 1, size >> 8, size & 255]);
  const buffer = Buffer.alloc(5);
  buffer[0] = first + 2;
  buffer.writeUInt32BE(size, 1);
  return buffer;
}

/** Return the one value that a buffer holds; throws a RangeError for what frames never hold. */
function unpack(buffer) {
  const reader = { buffer, at: 0 };
  const value = unpackFrom(reader);
  if (reader.at !== buffer.length) throw new RangeError('bytes after the value');
  return value;
}

const SIZED = { 0xd9: [1, 's'], 0xda: [2, 's'], 0xdb: [4, 's'], 0xc4: [1, 'b'], 0xc5: [2, 'b'], 0xc6: [4, 'b'],
  0xdc: [2, 'a'], 0xdd: [4, 'a'], 0xde: [2, 'm'], 0xdf: [4, 'm'] };
const FIXED = { 0xcc: [1, (b, a) => b.readUInt8(a)], 0xcd: [2, (b, a) => b.readUInt16BE(a)],
  0xce: [4, (b, a) => b.readUInt32BE(a)], 0xcf: [8, (b, a) => Number(b.readBigUInt64BE(a))],
  0xd0: [1, (b, a) => b.readInt8(a)], 0xd1: [2, (b, a) => b.readInt16BE(a)], 0xd2: [4, (b, a) => b.readInt32BE(a)],
  0xd3: [8, (b, a) => Number(b.readBigInt64BE(a))], 0xca: [4, (b, a) => b.readFloatBE(a)],
  0xcb: [8, (b, a) => b.readDoubleBE(a)] };

function unpackFrom(reader) {
  const code = reader.buffer.readUInt8(reader.at++);
  if (code < 0x80) return code;
  if (code >= 0xe0) return code - 256;
  if (code < 0x90) return unpackMap(reader, code & 15);
  if (code < 0xa0) return unpackArray(reader, code & 15);
  if (code < 0xc0) return take(reader, code & 31).toString('utf8');
  if (code === 0xc0) return null;
  if (code === 0xc2 || code === 0xc3) return code === 0xc3;
  if (code in FIXED) {
    const [size, read] = FIXED[code];
    const value = read(reader.buffer, reader.at);
    reader.at += size;
    return value;
  }
  if (!(code in SIZED)) throw new RangeError(`unknown type ${code}`);
  const [bytes, kind] = SIZED[code];
  const size = reader.buffer.readUIntBE(reader.at, bytes);
  reader.at += bytes;
  if (kind === 'a') return unpackArray(reader, size);
  if (kind === 'm') return unpackMap(reader, size);
  const raw = take(reader, size);
  return kind === 's' ? raw.toString('utf8') : raw;
}

function take(reader, size) {
  if (reader.at + size > reader.buffer.length) throw new RangeError('cut short');
  reader.at += size;
  return reader.buffer.subarray(reader.at - size, reader.at);
}

function unpackArray(reader, size) {
  const found = [];
  for (let index = 0; index < size; index++) found.push(unpackFrom(reader));
  return found;
}

function unpackMap(reader, size) {
  const found = Object.create(null);
  for (let index = 0; index < size; index++) {
    const key = unpackFrom(reader);
    found[key] = unpackFrom(reader);
  }
  return found;
}

module.exports = { pack, unpack };
