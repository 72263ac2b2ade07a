'use strict';
// What an error looks like: described whatever its own code does, without the worker's part of the stack.

const { inspect, types } = require('node:util');

const MAX_TEXT_CHARS = 1024 * 1024;
const UNPRINTABLE = '<it cannot be shown>';

/** Return the first of several ways that does not throw and gives text. */
function firstOf(...ways) {
  for (const way of ways) {
    try {
      const text = way();
      if (typeof text === 'string' && text) return text;
    } catch {} // eslint-disable-line no-empty
  }
  return '';
}

/** Return a value as Node's console shows it, also one whose own way to be shown fails; that goes to `report`. */
function show(value, report = () => {}) {
  try {
    return inspect(value);
  } catch (error) {
    report(error);
  }
  return firstOf(() => inspect(value, { customInspect: false }), () => Object.prototype.toString.call(value), () => UNPRINTABLE);
}

function isError(value) {
  try {
    return types.isNativeError(value) || value instanceof Error;
  } catch {
    return false;
  }
}

function describe(error) {
  if (!isError(error)) {
    const text = show(error);
    return { ename: 'Uncaught', evalue: text, lines: [`Uncaught ${text}`], ansi: [`Uncaught ${text}`] };
  }
  const ename = firstOf(() => String(error.name ?? ''), () => error.constructor.name, () => 'Error');
  let evalue = UNPRINTABLE;
  try {
    evalue = String(error.message);
  } catch {} // eslint-disable-line no-empty
  const stack = (colors) => firstOf(() => inspect(error, { colors }), () => inspect(error, { colors, customInspect: false }),
    () => error.stack, () => `${ename}: ${evalue}`);
  const clean = (colors) => withoutOurs(stack(colors).split('\n'), lineFile);
  return { ename, evalue, lines: clean(false), ansi: clean(true) };
}

/** Return the frames of a stack without the worker's, those of what runs its promises, and Node's that led to those. */
function withoutOurs(frames, fileOf) {
  let isBelow = false;
  return frames.filter((frame) => {
    const file = fileOf(frame);
    const isOurs = file !== null && /^(?:sandboxd:worker|node:inspector|node:internal\/process\/task_queues)/.test(file);
    isBelow = isOurs || (isBelow && file !== null && file.startsWith('node:'));
    const isShown = !isBelow;
    isBelow ||= file === LEFT_OUT;
    return isShown;
  });
}

/** Stands for the file of the line by which Node leaves out what a stack shares with the one above it: our frames too. */
const LEFT_OUT = '...';

/** Return the file of a line of a stack; null of any other line. */
function lineFile(line) {
  const text = line.replace(/\x1b\[\d+m/g, '');
  if (/^\s*\.\.\. \d+ lines matching/.test(text)) return LEFT_OUT;
  return /^\s*at (?:.*\()?(?:async )?((?:node:|sandboxd:)?[^\s()]+?)(?::\d+)*\)?[,\s]*[{\]]?$/.exec(text)?.[1] ?? null;
}

/** Let no stack have the worker's frames: not those that the code prints, either. */
function cleanStacks() {
  const format = Error.prepareStackTrace;
  if (typeof format !== 'function') return;
  Error.prepareStackTrace = (error, trace) =>
    format(error, withoutOurs(trace, (frame) => frame.getFileName() ?? frame.getScriptNameOrSourceURL() ?? ''));
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
    if (size >= MAX_TEXT_CHARS) break;
    found.push(line.slice(0, MAX_TEXT_CHARS - size));
    size += line.length;
  }
  return found;
}

module.exports = { INTERRUPTED, MAX_TEXT_CHARS, cleanStacks, cut, describe, show, syntaxError };
