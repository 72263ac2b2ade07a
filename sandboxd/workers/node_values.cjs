'use strict';
// What a result looks like: the formats of a value.

const { MAX_TEXT_CHARS, show } = require('./node_errors.cjs');

const MAX_RESULT_BYTES = 10 * 1024 * 1024;
const MAX_JSON_CHARS = 4 * 1024 * 1024 - 1;

const NAMES = { 'text/plain': 'text', 'text/html': 'html', 'text/markdown': 'markdown', 'image/png': 'png',
  'image/jpeg': 'jpeg', 'image/svg+xml': 'svg', 'application/pdf': 'pdf', 'text/latex': 'latex',
  'application/json': 'json', 'application/javascript': 'javascript' };
const BINARY = new Set(['png', 'jpeg', 'pdf']);
const JSON_NAMES = new Set(['json', 'chart', 'data']);
/** What the daemon takes as the name of a format that has none of its own. */
const MEDIA_TYPE = /^[a-z0-9][a-z0-9!#$&^_.+-]{0,99}\/[a-z0-9!#$&^_.+-]{1,100}$/;
const SHORT = new Set([...Object.values(NAMES), ...JSON_NAMES]);
const DISPLAY = Symbol.for('Jupyter.display');

function toFormats(bundle) {
  const formats = {}, notes = [];
  for (const [type, value] of Object.entries(bundle)) {
    const name = NAMES[type] ?? type.toLowerCase();
    if (value === undefined || value === null) continue;
    try {
      if (!SHORT.has(name) && !MEDIA_TYPE.test(name)) throw new TypeError('left out, it is no media type');
      formats[name] = formatOf(name, value);
    } catch (error) {
      notes.push(`${name.slice(0, 100)}: ${show(error).slice(0, 200).split('\n')[0]}`);
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

/** Return the bundle of a value; what fails in its own ways to be shown goes to `report`, and the rest stays. */
async function bundleOf(value, report) {
  const bundle = { 'text/plain': show(value, report) };
  const isObject = (typeof value === 'object' && value !== null) || typeof value === 'function';
  try {
    if (isObject && typeof value[DISPLAY] === 'function') Object.assign(bundle, await value[DISPLAY]());
  } catch (error) {
    report(error);
  }
  return bundle;
}

module.exports = { MAX_JSON_CHARS, bundleOf, toFormats };
