// The interpreter of a JavaScript or TypeScript code context: V8's own REPL mode behind frames on two pipes.
//
// Stands alone: the rootfs' own Node (22.13 or newer; 24 is what it is tested with) runs it, and nothing else is needed.
//
//     3 frames to us    4 frames from us    5 a byte for each frame that has been taken    6 which run to interrupt
//
// Code is evaluated by the inspector's Runtime.evaluate in REPL mode, which Chrome's console uses: `const`, `let` and
// `class` persist and may be declared again, `await` works at the top level, and the value of the last statement is
// the result. What that mode does not take (static imports, exports, import.meta, a dynamic import's loader) is
// rewritten first, and V8 itself says where: its syntax error names the place, so no parser of ours can be wrong.
//
// The promise of an evaluation is caught as it is made. The inspector would report on it too, but drops one that can
// never be settled in the middle of a garbage collection, where it must not call us, and V8 ends the process.
//
// Interrupts: a thread of its own hears of them. It tells the main thread, which gives up what it waits for; where that
// does not return to its event loop, V8 is asked to end whatever runs, timers and promise callbacks too.

import fs from 'node:fs';
import inspector from 'node:inspector';
import module, { createRequire } from 'node:module';
import net from 'node:net';
import path from 'node:path';
import process from 'node:process';
import util from 'node:util';
import { promiseHooks } from 'node:v8';
import vm from 'node:vm';
import { Worker } from 'node:worker_threads';

const IN = 3, OUT = 4, TICKS = 5, INTERRUPTS = 6;
const MAX_RESULT_BYTES = 10 * 1024 * 1024;
const MAX_JSON_CHARS = 4 * 1024 * 1024 - 1;
const MAX_TEXT_CHARS = 1024 * 1024;
/** How long an interrupted program may take to come back to the event loop by itself. */
const HEED_MS = 100;
/** Places of one piece of code that are rewritten; each costs V8 a look at the code. */
const MAX_REPAIRS = 500;

// --- msgpack, as much of it as frames need -------------------------------------------------------------------

/** Return a value (null, boolean, number, string, bytes, array, plain object) as msgpack. */
export function pack(value) {
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
export function unpack(buffer) {
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

// --- frames --------------------------------------------------------------------------------------------------

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
    if (!count) process.reallyExit(0);
    taken += count;
  }
}

// --- what a value looks like ---------------------------------------------------------------------------------

const NAMES = { 'text/plain': 'text', 'text/html': 'html', 'text/markdown': 'markdown', 'image/png': 'png',
  'image/jpeg': 'jpeg', 'image/svg+xml': 'svg', 'application/pdf': 'pdf', 'text/latex': 'latex',
  'application/json': 'json', 'application/javascript': 'javascript' };
const BINARY = new Set(['png', 'jpeg', 'pdf']);
const JSON_NAMES = new Set(['json', 'chart', 'data']);
const DISPLAY = Symbol.for('Jupyter.display');

function toFormats(bundle) {
  const formats = {}, notes = [];
  for (const [type, value] of Object.entries(bundle)) {
    const name = NAMES[type] ?? type.toLowerCase();
    try {
      if (value !== undefined && value !== null) formats[name] = formatOf(name, value);
    } catch (error) {
      notes.push(`${name}: ${String(error?.message).slice(0, 200)}`);
    }
    const kind = /plotly/.test(type) ? 'plotly' : /vega/.test(type) ? 'vega' : null;
    if (kind && type.endsWith('json') && formats[name]) formats.chart = `{"type":"${kind}","spec":${formats[name]}}`;
  }
  if (formats.text?.length > MAX_TEXT_CHARS) {
    notes.push(`text: the first ${MAX_TEXT_CHARS} of ${formats.text.length} characters`);
    formats.text = formats.text.slice(0, MAX_TEXT_CHARS);
  }
  const total = () => Object.values(formats).reduce((sum, value) => sum + value.length, 0);
  for (const name of Object.keys(formats).sort((a, b) => formats[b].length - formats[a].length)) {
    const size = formats[name].length;
    if (name !== 'text' && (total() > MAX_RESULT_BYTES || (JSON_NAMES.has(name) && size > MAX_JSON_CHARS))) {
      delete formats[name];
      notes.push(`${name}: left out, its ${size} bytes are over the bound`);
    }
  }
  return [formats, notes.length ? notes.join('; ').slice(0, 2000) : null];
}

function formatOf(name, value) {
  if (value instanceof Uint8Array) return BINARY.has(name) || name.includes('/') ? value : Buffer.from(value).toString();
  if (BINARY.has(name)) return Buffer.from(String(value), 'base64');
  if (typeof value === 'string' && name !== 'json') return value;
  return JSON.stringify(value) ?? 'null';
}

async function bundleOf(value) {
  const isObject = (typeof value === 'object' && value !== null) || typeof value === 'function';
  if (isObject && typeof value[DISPLAY] === 'function') {
    const bundle = await value[DISPLAY]();
    if (typeof bundle === 'object' && bundle !== null) return { 'text/plain': util.inspect(value), ...bundle };
  }
  return { 'text/plain': util.inspect(value) };
}

async function resultOf(value, fields) {
  const [formats, note] = toFormats(await bundleOf(value));
  return { op: 'result', run: current.run, main: false, formats, note, display_id: null, update: false, ...fields };
}

/** Show a value here and now, as the last expression's is shown at the end. */
async function display(value, options = {}) {
  const fields = { display_id: options.display_id == null ? null : String(options.display_id), update: !!options.update };
  if (options.raw) {
    const [formats, note] = toFormats(value);
    send([{ op: 'result', run: current.run, main: false, formats, note, ...fields }]);
  } else send([await resultOf(value, fields)]);
}

// --- errors --------------------------------------------------------------------------------------------------

function describe(error) {
  if (!util.types.isNativeError(error) && !(error instanceof Error)) {
    const text = util.inspect(error);
    return { ename: 'Uncaught', evalue: text, lines: [`Uncaught ${text}`], ansi: [`Uncaught ${text}`] };
  }
  const clean = (colors) => util.inspect(error, { colors }).split('\n').filter((line) => !isOurs(line));
  return { ename: String(error.name), evalue: String(error.message), lines: clean(false), ansi: clean(true) };
}

function isOurs(line) {
  return /^\s*(\x1b\[\d+m)?\s*at /.test(line) && /data:text\/javascript|node:inspector|evaluateHere/.test(line);
}

function syntaxError(message, code, line, column) {
  const all = code.trimEnd().split('\n');
  if (line > all.length) [line, column] = [all.length, all.at(-1).length + 1]; // the end of the code came too early
  const source = all[line - 1];
  const lines = [`${current.name}:${line}:${column}`, source.slice(0, 2000), ' '.repeat(Math.min(column - 1, 2000)) + '^', '',
    `SyntaxError: ${message}`];
  return { ename: 'SyntaxError', evalue: `${message} (line ${line}, column ${column})`, lines, ansi: lines };
}

const INTERRUPTED = { ename: 'KeyboardInterrupt', evalue: 'the run was interrupted', lines: ['KeyboardInterrupt: the run was interrupted'],
  ansi: ['KeyboardInterrupt: the run was interrupted'] };

function cut(lines) {
  const found = [];
  let size = 0;
  for (const line of lines.slice(0, 2000)) {
    size += line.length;
    if (size > MAX_TEXT_CHARS) break;
    found.push(line);
  }
  return found;
}

function sendError(error) {
  if (current.failed) return;
  current.failed = true;
  send([{ op: 'error', run: current.run, ename: error.ename.slice(0, 1000), evalue: error.evalue.slice(0, MAX_TEXT_CHARS / 4),
    traceback: cut(error.lines), traceback_ansi: cut(error.ansi) }]);
}

// --- from code to what V8's REPL mode takes ------------------------------------------------------------------

const session = new inspector.Session();
const pending = new Set();

function post(method, params) {
  let answer;
  session.post(method, params, (error, result) => { answer = { error, result }; });
  return answer;
}

/** Return V8's syntax error of code that cannot run: {message, line, column}, from 1, with `offset` in the code. */
function errorOf(details, code) {
  const text = String(details.exception?.description ?? details.text);
  const message = text.split('\n')[0].replace(/^SyntaxError: /, '');
  const line = details.lineNumber + 1, column = details.columnNumber + 1;
  let offset = 0;
  for (let index = 1; index < line; index++) offset = code.indexOf('\n', offset) + 1;
  return { message, line, column, offset: offset + column - 1, isSyntax: text.startsWith('SyntaxError') };
}

/** These stand for what they are as long as, so that the columns of errors stay true. */
const IMPORT = 'imp\u00f8rt', META = 'imp\u00f8rt_meta';

/** Replace each `import(` that is code (and not in a text, a comment or a pattern: V8 is asked) by a call of ours. */
function rewriteDynamicImports(code) {
  for (const match of code.matchAll(/(?<![.\w$])import(?=\s*\()/g)) {
    // What can never be a token is an error just there if it is in code; the one at the end keeps all from running.
    const probe = `${code.slice(0, match.index)}@@@@@@${code.slice(match.index + 6)}\n@`;
    const details = post('Runtime.evaluate', { expression: probe, replMode: true })?.result?.exceptionDetails;
    if (details && errorOf(details, probe).offset === match.index) {
      code = code.slice(0, match.index) + IMPORT + code.slice(match.index + 6);
    }
  }
  return code;
}

const NAME = '[\\p{ID_Start}$_][\\p{ID_Continue}$\\u200c\\u200d]*';
const STATEMENT = new RegExp(
  `^import(?:\\s+defer|\\s+source)?(?:\\s*(?:(?<whole>${NAME})\\s*(?:,\\s*)?)?(?:\\*\\s*as\\s+(?<space>${NAME})|(?<some>\\{[^}]*\\}))?\\s*from)?` +
  `\\s*(?<from>"[^"\\n]*"|'[^'\\n]*')(?<attributes>\\s*with\\s*\\{[^}]*\\})?`, 'u');

/** Return the static import that begins at `offset` as declarations, or null; as many lines as it had. */
function rewriteStatement(code, offset) {
  const match = STATEMENT.exec(code.slice(offset));
  if (!match) return null;
  const { whole, space, some, from, attributes } = match.groups;
  const options = attributes ? `, {${attributes.replace(/^\s*with/, 'with:')}}` : '';
  const call = `await ${IMPORT}(${from}${options})`;
  const names = some ? some.slice(1, -1).replace(/\/\*[^]*?\*\/|\/\/[^\n]*/g, '').split(',').map((item) => item.trim()).filter(Boolean)
    .map((item) => item.replace(/^type\s+(?=[^\s,])(?!as\b)/, '').replace(/\s+as\s+/, ': ')) : [];
  if (whole) names.unshift(`default: ${whole}`);
  const pattern = `{${names.join(', ')}}`;
  let text = call;
  if (space) text = `const ${space} = ${call}${names.length ? `, ${pattern} = ${space}` : ''}`;
  else if (names.length) text = `const ${pattern} = ${call}`;
  return code.slice(0, offset) + text + '\n'.repeat(match[0].split('\n').length - 1) + ';' + code.slice(offset + match[0].length);
}

/** Return the code with what V8 says it cannot take replaced at the place that it names, or null. */
function repair(code, error) {
  const { offset, message } = error;
  const word = /^(?:import\s*\.\s*meta|import|export\s+default|export)/.exec(code.slice(offset))?.[0];
  if (/import statement outside a module/.test(message) && word === 'import') return rewriteStatement(code, offset);
  if (/'import\.meta'/.test(message)) {
    const before = code.slice(0, offset).lastIndexOf('import');
    const start = word?.startsWith('import') ? offset : before;
    const found = /^import\s*\.\s*meta/.exec(code.slice(start))?.[0];
    return found ? code.slice(0, start) + META.padEnd(found.length) + code.slice(start + found.length) : null;
  }
  if (/Unexpected token 'export'/.test(message) && word?.startsWith('export')) {
    const rest = code.slice(offset + word.length);
    // A list of names declares nothing; of anything else, what follows the word is the declaration itself.
    const list = /^\s*(?:\{[^}]*\}|\*[^;\n]*)(\s*from\s*(?:"[^"\n]*"|'[^'\n]*'))?/.exec(rest)?.[0];
    const gone = word.length + (list && word === 'export' ? list.length : 0);
    return code.slice(0, offset) + code.slice(offset, offset + gone).replace(/[^\n]/g, ' ') + code.slice(offset + gone);
  }
  return null;
}

/** Strip TypeScript's types; what has a meaning at run time (enums, namespaces, parameter properties) is transformed. */
function toJavaScript(code) {
  try {
    return module.stripTypeScriptTypes(code, { mode: 'strip' });
  } catch (error) {
    if (error.code !== 'ERR_UNSUPPORTED_TYPESCRIPT_SYNTAX') throw error;
    return module.stripTypeScriptTypes(code, { mode: 'transform' });
  }
}

function typeScriptError(error, code) {
  const [, line] = /^[^\n]*:(\d+)\n/.exec(String(error.stack)) ?? [];
  const [, before] = /\n( *)\^/.exec(String(error.stack)) ?? [];
  return syntaxError(String(error.message), code, Number(line ?? 1), (before?.length ?? 0) + 1);
}

/** Return whether a statement of the top level may begin at `index`: what is before it is a whole program, V8 says. */
function isTopLevel(code, index) {
  try {
    new vm.Script(`(async () => {${code.slice(0, index)}\n})`); // compiled only
    return true;
  } catch {
    return false;
  }
}

/** Return the code that V8's REPL mode takes for `code`, as far as it takes any. */
function prepare(code) {
  if (/\b(?:import|export)\b/.test(code)) {
    for (let turn = 0; turn < MAX_REPAIRS; turn++) {
      const probe = `${code}\n@`; // no program, so nothing of it runs
      const details = post('Runtime.evaluate', { expression: probe, replMode: true })?.result?.exceptionDetails;
      const error = details && errorOf(details, probe);
      const repaired = error?.isSyntax && error.offset < code.length ? repair(code, error) : null;
      if (repaired === null) break;
      code = repaired;
    }
    if (/\bimport\s*\(/.test(code)) code = rewriteDynamicImports(code);
  }
  // A `const` could not become a `let` or a class later: at the top level it is one from the beginning.
  for (const match of [...code.matchAll(/(?<![.\w$])const(?=[\s{[])/g)].slice(0, MAX_REPAIRS)) {
    if (isTopLevel(code, match.index)) code = `${code.slice(0, match.index)}let  ${code.slice(match.index + 5)}`;
  }
  return code;
}

/** Let a name be declared in another way than it is already: its declaration becomes an assignment; or null. */
function redeclare(code, name) {
  const escaped = name.replaceAll('$', '\\$');
  const word = new RegExp(`(?<![.\\w$])(let|var|class|(?:async\\s+)?function(?:\\s*\\*)?)\\s+(?=${escaped}(?![\\w$]))`, 'gu');
  for (const match of [...code.matchAll(word)].reverse()) {
    if (!isTopLevel(code, match.index)) continue;
    const end = match.index + match[0].length;
    const isValue = match[1] === 'let' || match[1] === 'var';
    return code.slice(0, match.index) + (isValue ? match[0].replace(/[^\n]/g, ' ') : `${name} = ${match[0]}`) + code.slice(end);
  }
  return null;
}

/** Evaluate code; return {promise} of {'.repl_result'}, {syntax} error, or {interrupted}. */
function evaluateHere(source) {
  let code = prepare(source);
  for (let turn = 0; ; turn++) {
    let held = null;
    const stop = promiseHooks.onInit((promise) => { held ??= promise; });
    let answer;
    try {
      answer = post('Runtime.evaluate',
        { expression: `${code}\n//# sourceURL=${current.name}`, replMode: true, objectGroup: 'run' });
    } finally {
      stop();
    }
    if (/find context/.test(answer?.error?.message)) {
      // process.kill() of the own process runs Node's at-exit hooks, whatever the signal: V8's inspector is gone for good.
      writeAll(2, Buffer.from('The interpreter has to end: Node closed its inspector when the code signalled its own process\n'));
      process.reallyExit(70);
    }
    if (answer?.error) return { interrupted: true };
    const details = answer?.result?.exceptionDetails;
    if (!details) return { promise: held };
    const error = errorOf(details, code);
    // Of a name that the code itself declares twice, V8 tells the place of the second.
    const [, name] = error.offset === 0 ? /^Identifier '(.+)' has already been declared/.exec(error.message) ?? [] : [];
    const repaired = name && turn < MAX_REPAIRS ? redeclare(code, name) : null;
    if (repaired === null) return { syntax: syntaxError(error.message, source, error.line, error.column) };
    code = repaired;
  }
}

// --- runs ----------------------------------------------------------------------------------------------------

/** The run under way, or the last one: {run, name, failed, interrupt}. */
let current = { run: 0, name: '', failed: false, interrupt: null };
let count = 0;
/** Shared with the watchdog: interrupts heeded, ends that V8 was asked for and has not brought; and two runs' numbers. */
const shared = new SharedArrayBuffer(24);
const heeded = new Int32Array(shared, 0, 1), ending = new Int32Array(shared, 4, 1);
const toInterrupt = new Float64Array(shared, 8, 1), active = new Float64Array(shared, 16, 1);

const WATCHDOG = `
const { parentPort, workerData } = require('node:worker_threads');
const inspector = require('node:inspector'), net = require('node:net');
const heeded = new Int32Array(workerData.shared, 0, 1), ending = new Int32Array(workerData.shared, 4, 1);
const toInterrupt = new Float64Array(workerData.shared, 8, 1), active = new Float64Array(workerData.shared, 16, 1);
const session = new inspector.Session();
session.connectToMainThread();
new net.Socket({ fd: workerData.fd, readable: true, writable: false }).on('data', (data) => {
  for (let at = 0; at + 8 <= data.length; at += 8) toInterrupt[0] = Number(data.readBigUInt64BE(at));
  const seen = Atomics.load(heeded, 0);
  parentPort.postMessage(toInterrupt[0]);
  setTimeout(() => {
    Atomics.add(ending, 0, 1);
    if (Atomics.load(heeded, 0) === seen && active[0] === toInterrupt[0]) {
      session.post('Runtime.terminateExecution', () => { Atomics.sub(ending, 0, 1); });
    } else Atomics.sub(ending, 0, 1);
  }, workerData.heedMs);
}).on('error', () => {});
`;

function startWatchdog() {
  const limits = { maxOldGenerationSizeMb: 8, maxYoungGenerationSizeMb: 2, codeRangeSizeMb: 4, stackSizeMb: 1 };
  const worker = new Worker(WATCHDOG, { eval: true, execArgv: [], env: {}, resourceLimits: limits,
    workerData: { shared, fd: INTERRUPTS, heedMs: HEED_MS } });
  worker.on('message', onInterrupt).on('error', () => {}).unref();
}

/** The watchdog's word, not SIGINT itself: a signal that is delivered late would end the run after the one it meant. */
function onInterrupt(run) {
  Atomics.add(heeded, 0, 1);
  if (run === current.run) current.interrupt?.();
}

/** Let an end that V8 was asked for hit nothing but this loop: it ends what runs now, or else what runs next. */
function settle() {
  Object.defineProperty(globalThis, SETTLE, { value: () => { while (Atomics.load(ending, 0) > 0); }, configurable: true });
  while (Atomics.load(ending, 0) > 0) post('Runtime.evaluate', { expression: `globalThis[Symbol.for('sandboxd.settle')]()` });
  delete globalThis[SETTLE];
}

const SETTLE = Symbol.for('sandboxd.settle');

function onSigint() {} // the programs that the code has started take it, and we live on

async function run(message) {
  const before = {};
  for (const [name, value] of Object.entries(message.env ?? {})) {
    before[name] = process.env[name];
    process.env[name] = value;
  }
  count += 1;
  const extension = language === 'typescript' ? 'ts' : 'js';
  let interrupt;
  const interrupted = new Promise((resolve) => { interrupt = () => resolve(INTERRUPTED); });
  current = { run: message.run, name: `cell-${count}.${extension}`, failed: false, interrupt };
  if (!process.listeners('SIGINT').includes(onSigint)) process.on('SIGINT', onSigint);
  active[0] = message.run;
  if (toInterrupt[0] === message.run) interrupt();
  const results = [];
  try {
    const found = await Promise.race([interrupted, outcome(message.code)]);
    if (found.result) results.push(found.result);
    else if (found.ename) sendError(found);
  } catch (error) {
    sendError(describe(error));
  }
  // A rejection that nobody handles is told a turn later.
  await new Promise((resolve) => { setImmediate(resolve); });
  current.interrupt = null;
  active[0] = 0;
  if (Atomics.load(ending, 0) > 0) settle();
  post('Runtime.releaseObjectGroup', { objectGroup: 'run' });
  for (const [name, value] of Object.entries(before)) {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
  send([...results, { op: 'end', run: message.run, status: current.failed ? 'error' : 'ok', count }], false);
}

/** Return {result}, an error's description, or an empty object where there is nothing to show. */
async function outcome(source) {
  let code = source;
  if (language === 'typescript') {
    try {
      code = toJavaScript(source);
    } catch (error) {
      return typeScriptError(error, source);
    }
  }
  const { promise, syntax, interrupted } = evaluateHere(code);
  if (syntax) return syntax;
  if (interrupted || !promise) return INTERRUPTED;
  pending.add(promise);
  try {
    const value = (await promise)['.repl_result'];
    return value === undefined ? {} : { result: await resultOf(value, { main: true }) };
  } catch (error) {
    // A program of the code's that the interrupt has ended, say.
    return toInterrupt[0] === current.run ? INTERRUPTED : describe(error);
  } finally {
    pending.delete(promise);
  }
}

// --- completion and inspection -------------------------------------------------------------------------------

/** Return the value of an expression that changes nothing, or undefined. */
function peek(expression) {
  const { result } = post('Runtime.evaluate', { expression, throwOnSideEffect: true, silent: true, objectGroup: 'peek' }) ?? {};
  if (!result || result.exceptionDetails) return undefined;
  const { objectId, value } = result.result;
  if (!objectId) return value;
  let found;
  const hook = post('Runtime.evaluate', { expression: `globalThis[Symbol.for('sandboxd.peek')]`, objectGroup: 'peek' });
  globalThis[Symbol.for('sandboxd.peek')] ??= (object) => { found = object; };
  const target = hook?.result?.result?.objectId ??
    post('Runtime.evaluate', { expression: `globalThis[Symbol.for('sandboxd.peek')]`, objectGroup: 'peek' }).result.result.objectId;
  post('Runtime.callFunctionOn', { objectId: target, functionDeclaration: 'function (value) { this(value); }', arguments: [{ objectId }] });
  delete globalThis[Symbol.for('sandboxd.peek')];
  post('Runtime.releaseObjectGroup', { objectGroup: 'peek' });
  return found;
}

function complete({ code, cursor }) {
  const [, object, word] = /(?:((?:[\w$]+|\[['"\d][^\]]*\]|\.)+)\.)?([\w$]*)$/.exec(code.slice(0, cursor));
  const names = new Set();
  if (!object && code[cursor - word.length - 1] === '.') return { matches: [], start: cursor, end: cursor };
  if (object) {
    let value = peek(object);
    for (value = value == null ? null : Object(value); value !== null; value = Object.getPrototypeOf(value)) {
      for (const name of Object.getOwnPropertyNames(value)) names.add(name);
    }
  } else {
    const lexical = post('Runtime.globalLexicalScopeNames', {})?.result?.names ?? [];
    for (const name of [...lexical, ...Object.getOwnPropertyNames(globalThis)]) names.add(name);
  }
  const matches = [...names].filter((name) => name.startsWith(word) && /^[\p{ID_Start}$_][\p{ID_Continue}$]*$/u.test(name));
  return { matches: matches.slice(0, 500), start: cursor - word.length, end: cursor };
}

function inspect({ code, cursor, detail }) {
  const before = /[\w$.]*$/.exec(code.slice(0, cursor))[0], after = /^[\w$]*/.exec(code.slice(cursor))[0];
  const name = before + after;
  const value = name ? peek(name) : undefined;
  if (value === undefined) return { found: false, name, text: null };
  const source = typeof value === 'function' && detail ? `\n${value}` : '';
  return { found: true, name, text: (util.inspect(value) + source).slice(0, MAX_TEXT_CHARS / 4) };
}

function answer(message) {
  let value;
  try {
    value = message.op === 'complete' ? complete(message) : inspect(message);
  } catch (error) {
    value = { error: String(error).slice(0, 1000) };
  }
  send([{ op: 'reply', run: message.run, value: JSON.stringify(value).slice(0, MAX_JSON_CHARS) }], false);
}

// --- the process ---------------------------------------------------------------------------------------------

let language = 'javascript';

function setUpGlobals() {
  const here = path.join(process.cwd(), 'cell.js');
  const imports = new Map();
  const load = (specifier, options) => {
    const parent = path.join(process.cwd(), 'cell.js');
    if (!imports.has(parent)) {
      imports.set(parent, vm.compileFunction('return (specifier, options) => import(specifier, options)', [],
        { filename: parent, importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER })());
    }
    return imports.get(parent)(specifier, options);
  };
  const cellModule = { exports: {}, filename: here, id: '.', loaded: false, paths: [], children: [] };
  const names = {
    [IMPORT]: load,
    [META]: Object.freeze({ url: `file://${here}`, filename: here, dirname: path.dirname(here), main: true }),
    require: createRequire(here), module: cellModule, exports: cellModule.exports, __filename: here,
    __dirname: path.dirname(here), display,
  };
  for (const [name, value] of Object.entries(names)) {
    Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: false });
  }
}

/** What is printed is in its pipe when the call returns, or a frame that follows would come before it. */
function setUpOutput() {
  for (const [fd, stream] of [[1, process.stdout], [2, process.stderr]]) {
    stream._write = (chunk, encoding, done) => {
      writeAll(fd, typeof chunk === 'string' ? Buffer.from(chunk, encoding) : chunk);
      done();
    };
    stream._writev = null;
  }
}

function setUpProcess() {
  // A change of the effective user makes a process neither dumpable nor ptraceable (commit_creds in the kernel).
  if (process.geteuid() === 0) {
    try {
      process.seteuid(65534);
      process.seteuid(0);
    } catch {} // eslint-disable-line no-empty
  }
  process.on('SIGINT', onSigint);
  const onStray = (error) => {
    if (current.interrupt) sendError(describe(error));
    else writeAll(2, Buffer.from(`Uncaught ${describe(error).lines.join('\n')}\n`));
  };
  process.on('unhandledRejection', onStray);
  process.on('uncaughtException', onStray);
}

function serve() {
  let buffer = Buffer.alloc(0);
  const waiting = [];
  let busy = false;
  // No chain of promises: when V8 ends what runs, it drops every promise callback that waits at that moment.
  const next = async () => {
    if (busy || !waiting.length) return;
    busy = true;
    try {
      const message = waiting.shift();
      if (message.op === 'run') await run(message);
      else answer(message);
    } finally {
      busy = false;
      setImmediate(next);
    }
  };
  const input = new net.Socket({ fd: IN, readable: true, writable: false });
  input.on('data', (data) => {
    buffer = buffer.length ? Buffer.concat([buffer, data]) : data;
    while (buffer.length >= 4 && buffer.length >= 4 + buffer.readUInt32BE(0)) {
      const size = buffer.readUInt32BE(0);
      const message = unpack(buffer.subarray(4, 4 + size));
      buffer = buffer.subarray(4 + size);
      waiting.push(message);
    }
    next();
  });
  input.on('end', () => process.reallyExit(0));
  input.on('error', () => process.reallyExit(0));
}

function main() {
  language = process.env.SANDBOXD_LANGUAGE ?? 'javascript';
  delete process.env.SANDBOXD_LANGUAGE;
  if (language === 'typescript' && typeof module.stripTypeScriptTypes !== 'function') {
    send([{ op: 'failed', message: `TypeScript needs Node 22.13 or newer, and this is ${process.version}` }], false);
    process.reallyExit(1);
  }
  session.connect();
  setUpGlobals();
  setUpOutput();
  setUpProcess();
  serve();
  send([{ op: 'ready', version: `Node.js ${process.version}` }], false);
  setImmediate(startWatchdog);
}

if (process.argv[2] !== '--codec') main();
