'use strict';
// What a result and an error look like: formats of a value, the lines of a traceback.

const util = require('node:util');

const MAX_RESULT_BYTES = 10 * 1024 * 1024;
const MAX_JSON_CHARS = 4 * 1024 * 1024 - 1;
const MAX_TEXT_CHARS = 1024 * 1024;

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
  return /^\s*(\x1b\[\d+m)?\s*at /.test(line) && /sandboxd:worker|node:inspector|evaluateHere/.test(line);
}

function syntaxError(name, message, code, line, column) {
  const all = code.trimEnd().split('\n');
  if (line > all.length) [line, column] = [all.length, all.at(-1).length + 1]; // the end of the code came too early
  const source = all[line - 1];
  const lines = [`${name}:${line}:${column}`, source.slice(0, 2000), ' '.repeat(Math.min(column - 1, 2000)) + '^', '',
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

module.exports = { MAX_JSON_CHARS, MAX_TEXT_CHARS, INTERRUPTED, bundleOf, cut, describe, syntaxError, toFormats };
