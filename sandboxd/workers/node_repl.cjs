'use strict';
// From what users write to what V8's REPL mode takes, and the inspector session that evaluates it.

const inspector = require('node:inspector');
const nodeModule = require('node:module');
const { promiseHooks } = require('node:v8');
const vm = require('node:vm');
const { end } = require('./node_ends.cjs');
const { syntaxError } = require('./node_errors.cjs');
const { writeAll } = require('./node_frames.cjs');

/** Places of one piece of code that are rewritten; each costs V8 a look at the code. */
const MAX_REPAIRS = 500;

const session = new inspector.Session();

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

/** Whether this Node can take TypeScript at all. */
const canStripTypes = typeof nodeModule.stripTypeScriptTypes === 'function';

/** Whether code that is JavaScript as it stands may mean something else as TypeScript: `f<T>(x)` is a call there, and
 *  what an import is for decides whether it stays. Node's transformer takes 40 ms and 25 MB to load. */
function mayBeTypeScript(code) {
  return /<[^]*>|\b(?:import|export)\b/.test(code);
}

/** Strip TypeScript's types; what has a meaning at run time (enums, namespaces, parameter properties) is transformed. */
function toJavaScript(code) {
  try {
    return nodeModule.stripTypeScriptTypes(code, { mode: 'strip' });
  } catch (error) {
    if (error.code !== 'ERR_UNSUPPORTED_TYPESCRIPT_SYNTAX') throw error;
    return nodeModule.stripTypeScriptTypes(code, { mode: 'transform' });
  }
}

function typeScriptError(error, code, name) {
  const [, line] = /^[^\n]*:(\d+)\n/.exec(String(error.stack)) ?? [];
  const [, before] = /\n( *)\^/.exec(String(error.stack)) ?? [];
  return syntaxError(name, String(error.message), code, Number(line ?? 1), (before?.length ?? 0) + 1);
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
function evaluateHere(source, name) {
  let code = prepare(source);
  for (let turn = 0; ; turn++) {
    let held = null;
    const stop = promiseHooks.onInit((promise) => { held ??= promise; });
    let answer;
    try {
      answer = post('Runtime.evaluate',
        { expression: `${code}\n//# sourceURL=${name}`, replMode: true, objectGroup: 'run' });
    } finally {
      stop();
    }
    if (/find context/.test(answer?.error?.message)) {
      // Signalling the own process (from a worker thread) runs Node's at-exit hooks: V8's inspector is gone for good.
      writeAll(2, Buffer.from('The interpreter has to end: Node closed its inspector when the code signalled its own process\n'));
      end(70);
    }
    if (answer?.error) return { interrupted: true };
    const details = answer?.result?.exceptionDetails;
    if (!details) return { promise: held };
    const error = errorOf(details, code);
    // Of a name that the code itself declares twice, V8 tells the place of the second.
    const [, declared] = error.offset === 0 ? /^Identifier '(.+)' has already been declared/.exec(error.message) ?? [] : [];
    const repaired = declared && turn < MAX_REPAIRS ? redeclare(code, declared) : null;
    if (repaired === null) return { syntax: syntaxError(name, error.message, source, error.line, error.column) };
    code = repaired;
  }
}

module.exports = { IMPORT, META, canStripTypes, evaluateHere, mayBeTypeScript, post, session, toJavaScript,
  typeScriptError };
