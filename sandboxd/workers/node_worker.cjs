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
//
// One of several CommonJS modules (`node_*.cjs`) that the daemon bundles: a script, since Node's loader of ES modules
// takes longer to be there than all of this.
'use strict';

const fs = require('node:fs');
const { createRequire } = require('node:module');
const net = require('node:net');
const path = require('node:path');
const process = require('node:process');
const vm = require('node:vm');
const { Worker } = require('node:worker_threads');
const { unpack } = require('./node_codec.cjs');
const { end, guardEnds } = require('./node_ends.cjs');
const { INTERRUPTED, MAX_TEXT_CHARS, cleanStacks, cut, describe } = require('./node_errors.cjs');
const { send, writeAll } = require('./node_frames.cjs');
const { complete, inspect } = require('./node_questions.cjs');
const { IMPORT, META, canStripTypes, evaluateHere, mayBeTypeScript, post, session, toJavaScript, typeScriptError } =
  require('./node_repl.cjs');
const { MAX_JSON_CHARS, bundleOf, toFormats } = require('./node_values.cjs');

const IN = 3, INTERRUPTS = 6;
/** How long an interrupted program may take to come back to the event loop by itself. */
const HEED_MS = 100;

// --- what a run shows ----------------------------------------------------------------------------------------

async function resultOf(value, fields) {
  const [formats, note] = toFormats(await bundleOf(value, printError));
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

/** Print an error that does not end the run. */
function printError(error) {
  writeAll(2, Buffer.from(`${cut(describe(error).lines).join('\n')}\n`));
}

function sendError(error) {
  if (current.failed) return;
  current.failed = true;
  send([{ op: 'error', run: current.run, ename: error.ename.slice(0, 1000), evalue: error.evalue.slice(0, MAX_TEXT_CHARS / 4),
    traceback: cut(error.lines), traceback_ansi: cut(error.ansi) }]);
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

let hasWatchdog = false;

function startWatchdog() {
  hasWatchdog = true;
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

/** Listeners that stay, by name: SIGINT is taken by the programs that the code has started, and we live on. Node's own
 *  come first: without them no listener hears of a signal. */
const LISTENERS = [
  ...['newListener', 'removeListener'].flatMap((name) => process.listeners(name).map((listener) => [name, listener])),
  ['removeListener', onRemoved], ['SIGINT', () => {}], ['unhandledRejection', onStray], ['uncaughtException', onStray],
];

function isOurs(listener) {
  return LISTENERS.some(([, ours]) => ours === listener);
}

function onStray(error, origin) {
  const kind = typeof origin === 'string' ? 'uncaughtException' : 'unhandledRejection';
  if (process.listeners(kind).some((listener) => !isOurs(listener))) return;
  if (current.interrupt) sendError(describe(error));
  else writeAll(2, Buffer.from(`Uncaught ${cut(describe(error).lines).join('\n')}\n`));
}

/** Listen (again), before the code's own: it may have removed all listeners. */
function listen() {
  for (const [name, listener] of LISTENERS) {
    if (!process.listeners(name).includes(listener)) process.prependListener(name, listener);
  }
}

function onRemoved(name, listener) {
  if (isOurs(listener)) queueMicrotask(listen);
}

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
  listen();
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

/** Promises of evaluations that are not settled: held, as above, from the garbage collection. */
const pending = new Set();

/** As of `evaluateHere`; code that is JavaScript as well is spared the loading of the transformer. */
function evaluateTypeScript(source) {
  if (!mayBeTypeScript(source)) {
    const found = evaluateHere(source, current.name);
    if (!found.syntax) return found; // a syntax error is told before anything has run
  }
  let code;
  try {
    code = toJavaScript(source);
  } catch (error) {
    return { syntax: typeScriptError(error, source, current.name) };
  }
  return evaluateHere(code, current.name);
}

/** Return {result}, an error's description, or an empty object where there is nothing to show. */
async function outcome(source) {
  const { promise, syntax, interrupted } = language === 'typescript' ? evaluateTypeScript(source) : evaluateHere(source, current.name);
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

function answer(message) {
  let value;
  try {
    value = message.op === 'complete' ? complete(message) : inspect(message);
  } catch { // of an object that the code has made
    const { cursor } = message;
    value = message.op === 'complete' ? { matches: [], start: cursor, end: cursor } : { found: false, name: '', text: null };
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
  guardEnds(isOurs);
  cleanStacks();
  listen();
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
      else if (message.op === 'begin') begin(message);
      else if (message.op === 'park') park(message);
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
  input.on('end', () => end(0));
  input.on('error', () => end(0));
}

/** Be the interpreter of a context. */
function begin(message) {
  language = message.language;
  if (language === 'typescript' && !canStripTypes) {
    send([{ op: 'failed', message: `TypeScript needs Node 22.13 or newer, and this is ${process.version}` }], false);
    end(1);
  }
  send([{ op: 'ready', version: `Node.js ${process.version}` }], false);
  if (!hasWatchdog) setImmediate(startWatchdog);
}

/** Make ready what the first run would wait for, and say which files this process consists of, its program first. */
function park(message) {
  startWatchdog();
  if (message.language === 'typescript' && canStripTypes) toJavaScript('0');
  const mapped = fs.readFileSync('/proc/self/maps', 'utf8').matchAll(/ (\/.+)$/gm);
  const files = new Set([process.execPath, ...[...mapped].map(([, file]) => file).filter((file) => !file.startsWith('/memfd:'))]);
  send([{ op: 'parked', files: [...files] }], false);
}

function main() {
  session.connect();
  setUpGlobals();
  setUpOutput();
  setUpProcess();
  serve();
}

main();