'use strict';
// Completion and inspection of what is there, without running anything that could change it.

const { post } = require('./node_repl.cjs');
const { MAX_TEXT_CHARS, show } = require('./node_errors.cjs');

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
  return { found: true, name, text: (show(value) + source).slice(0, MAX_TEXT_CHARS / 4) };
}

module.exports = { complete, inspect };
