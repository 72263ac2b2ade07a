// Calls the real clients of @cloudflare/sandbox: a JSON request a line on stdin, its JSON answer a line on stdout.
//   {id, op: 'call', on: 'files.readFile', args}      the method's result
//   {id, op: 'stream', on, args, until, limit, then}  the events of the stream that it returns; `until` is a type, and
//                                                     `then` has the request to make at the first event of a type
//   {id, op: 'code', code, options}                   CodeInterpreter.runCode with every callback
//   {id, op: 'pty', query, steps}                     a terminal: steps are {send}, {text} and {until}, a part of its output
//   {id, op: 'all', requests}                         several at once
// An answer is {id, ok} or {id, error: {name, code, ...}}; `ms` is how long it took.
import { createInterface } from 'node:readline';
import * as sdk from '@cloudflare/sandbox';

const settings = JSON.parse(process.argv[2]);
const clients = new Map();

function clientOf(request) {
  const name = request.sandbox ?? settings.sandbox;
  const transport = request.transport ?? 'http';
  const token = request.token === undefined ? settings.token : request.token;
  const key = JSON.stringify([name, transport, token]);
  if (!clients.has(key)) {
    const baseUrl = `${settings.url}/cloudflare/sandboxes/${name}`;
    const client = new sdk.SandboxClient({
      baseUrl,
      defaultHeaders: token ? { authorization: `Bearer ${token}` } : {},
      transportMode: transport,
      wsUrl: `${baseUrl.replace(/^http/, 'ws')}/ws?access_token=${token ?? ''}`,
      retryTimeoutMs: 0,
    });
    client.code = new sdk.CodeInterpreter(client.interpreter);
    clients.set(key, client);
  }
  return clients.get(key);
}

function method(request) {
  const [domain, name] = request.on.split('.');
  const target = clientOf(request)[domain];
  return target[name](...(request.args ?? []).map((value) => (value === null ? undefined : value)));
}

async function stream(request) {
  const began = performance.now();
  const [events, asked] = [[], []];
  const then = { ...request.then };
  for await (const event of sdk.parseSSEStream(await method(request))) {
    events.push({ ...event, ms: performance.now() - began });
    const next = then[event.type];
    delete then[event.type];
    if (next) asked.push(answer(next));
    if (event.type === request.until || events.length === request.limit) break;
  }
  for (const { error } of await Promise.all(asked)) if (error) throw error;
  return events;
}

async function runCode(request) {
  const began = performance.now();
  const seen = [];
  const note = (kind) => (value) => void seen.push({ kind, value, ms: performance.now() - began });
  const options = { onStdout: note('stdout'), onStderr: note('stderr'), onResult: note('result'), onError: note('error') };
  const client = clientOf(request);
  let execution;
  if (request.context) {
    // What Sandbox.runCode does; the timeout is a parameter of the client below it.
    const found = { logs: { stdout: [], stderr: [] }, results: [] };
    await client.interpreter.runCodeStream(request.context, request.code, request.options?.language, {
      onStdout: (one) => (found.logs.stdout.push(one.text), options.onStdout(one)),
      onStderr: (one) => (found.logs.stderr.push(one.text), options.onStderr(one)),
      onResult: (one) => (found.results.push(one), options.onResult(one)),
      onError: (one) => ((found.error = one), options.onError(one)),
    }, request.options?.timeout);
    execution = found;
  } else {
    execution = await client.code.runCode(request.code, { ...request.options, ...options });
  }
  return { ...execution, formats: execution.results.map((one) => one.formats()), seen };
}

function pty(request) {
  const query = new URLSearchParams({ access_token: settings.token, ...request.query });
  const name = request.sandbox ?? settings.sandbox;
  const path = request.path ?? '/ws/pty'; // or another WebSocket, whose text messages are of interest
  const url = `${settings.url.replace(/^http/, 'ws')}/cloudflare/sandboxes/${name}${path}?${query}`;
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url);
    socket.binaryType = 'arraybuffer';
    const found = { output: '', texts: [] };
    const steps = [...request.steps];
    const decoder = new TextDecoder();
    let seen = 0;
    let closing = false;
    function go() {
      while (steps.length) {
        const { send, text, until } = steps[0];
        if (until !== undefined) {
          const at = found.output.indexOf(until, seen);
          if (at < 0) return;
          seen = at + until.length;
        } else if (send !== undefined) socket.send(new TextEncoder().encode(send));
        else socket.send(typeof text === 'string' ? text : JSON.stringify(text));
        steps.shift();
      }
      if (!request.stay) {
        closing = true;
        socket.close();
      }
    }
    socket.onmessage = ({ data }) => {
      if (typeof data === 'string') {
        found.texts.push(JSON.parse(data));
        if (found.texts.at(-1).type === 'ready') found.before = found.output; // what was shown until then
        if (request.path) found.output += data;
      }
      else found.output += decoder.decode(data, { stream: true });
      go();
    };
    socket.onopen = () => request.path && go();
    socket.onclose = ({ code }) => resolve({ ...found, code, left: steps.length });
    // After our goodbye Node now and then tells an error; its end is told all the same.
    socket.onerror = ({ message }) => closing || reject(new Error(message || 'the handshake failed'));
  });
}

const OPERATIONS = {
  pty,
  call: method,
  stream,
  code: runCode,
  all: (request) => Promise.all(request.requests.map(answer)),
};

async function answer(request) {
  const began = performance.now();
  try {
    const ok = await OPERATIONS[request.op]({ sandbox: settings.sandbox, ...request });
    return { id: request.id, ok: ok ?? null, ms: performance.now() - began };
  } catch (error) {
    const { name, message, code, httpStatus, context, suggestion, operation } = error;
    const told = { name, message, code, httpStatus, context, suggestion, operation };
    return { id: request.id, error: told, ms: performance.now() - began };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  process.stdout.write(JSON.stringify(await answer(request)) + '\n');
}
process.exit(0);
