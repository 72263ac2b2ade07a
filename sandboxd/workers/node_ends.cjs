'use strict';
// The ends of the process that code may ask for: they are explained to it, as Python's `exit()` is, and the state stays.

/** End the process; the worker's own way. */
const end = process.reallyExit.bind(process);
const kill = process._kill;
/** What a process without a listener survives. */
const IGNORED = new Set(['SIGCHLD', 'SIGCONT', 'SIGURG', 'SIGWINCH']);

class ProcessExit extends Error {}
Object.defineProperty(ProcessExit.prototype, 'name', { value: 'ProcessExit', configurable: true, writable: true });

function refuse(call) {
  throw new ProcessExit(`a code context is not ended by ${call}: delete it, or restart it`);
}

/** Signal a process. One to ourselves must not go through Node, which closes its inspector first, whatever the signal. */
function signal(pid, number, isOurs) {
  const meansUs = pid === process.pid || pid === 0 || pid === -process.pid || pid === -1;
  if (!meansUs || number === 0) return kill.call(process, pid, number);
  const { signals } = require('node:os').constants;
  const name = Object.keys(signals).find((one) => signals[one] === number) ?? `${number}`;
  const isHeard = process.listeners(name).some((listener) => !isOurs(listener));
  if (!isHeard && !IGNORED.has(name)) refuse(`process.kill(${pid}, '${name}')`);
  require('node:child_process').spawnSync('/bin/sh', ['-c', `kill -s ${number} -- ${pid === 0 ? -process.pid : pid}`], { stdio: 'ignore' });
  return 0;
}

/** Take the place of what ends the process; `isOurs` tells the worker's own listeners from the code's. */
function guardEnds(isOurs) {
  const ways = {
    exit: (code) => refuse(`process.exit(${code === undefined ? '' : String(code)})`),
    reallyExit: (code) => refuse(`process.reallyExit(${code === undefined ? '' : String(code)})`),
    abort: () => refuse('process.abort()'),
    execve: () => refuse('process.execve()'),
    _kill: (pid, number) => signal(pid, number, isOurs),
  };
  for (const [name, value] of Object.entries(ways)) {
    if (typeof process[name] === 'function') {
      Object.defineProperty(value, 'name', { value: name });
      Object.defineProperty(process, name, { value, writable: true, configurable: true, enumerable: true });
    }
  }
}

module.exports = { end, guardEnds };
