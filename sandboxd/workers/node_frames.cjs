'use strict';
// The worker's pipes: frames to init, and init's word that they have been taken.

const fs = require('node:fs');
const { pack } = require('./node_codec.cjs');
const { end } = require('./node_ends.cjs');

const OUT = 4, TICKS = 5;
const tickBuffer = Buffer.alloc(4096);
const sleeper = new Int32Array(new SharedArrayBuffer(4));
let sent = 0, taken = 0;

function writeAll(fd, data) {
  for (let at = 0; at < data.length;) {
    try {
      at += fs.writeSync(fd, data, at);
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
      Atomics.wait(sleeper, 0, 0, 1); // somebody made the pipe non-blocking, and it is full
    }
  }
}

/** Send frames; unless told not to, wait until they have been taken, so that what is printed next comes after them. */
function send(messages, wait = true) {
  const parts = [];
  for (const message of messages) {
    const body = pack(message);
    const size = Buffer.alloc(4);
    size.writeUInt32BE(body.length);
    parts.push(size, body);
  }
  writeAll(OUT, Buffer.concat(parts));
  sent += messages.length;
  while (wait && taken < sent) {
    const count = fs.readSync(TICKS, tickBuffer);
    if (!count) end(0);
    taken += count;
  }
}

module.exports = { send, writeAll };
