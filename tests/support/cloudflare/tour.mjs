// Walks through the public API of a Sandbox, as its users call it, and prints what came of each step as JSON.
import { getSandbox, parseSSEStream, proxyToSandbox, collectFile } from '@cloudflare/sandbox';
import { namespace } from './host.mjs';

const settings = JSON.parse(process.argv[2]);
console.log = console.info = console.debug = console.warn = console.error = () => {}; // its own log
const env = { Sandbox: namespace(settings) };
const sandbox = getSandbox(env.Sandbox, settings.sandbox);
await new Promise(setImmediate); // Workers hand it its settings before anything else
const found = {};

async function step(name, run) {
  try {
    found[name] = (await run()) ?? null;
  } catch (error) {
    found[name] = { threw: error.name, code: error.code, message: error.message };
  }
}
async function all(stream, limit = Infinity) {
  const events = [];
  for await (const event of parseSSEStream(stream)) if (events.push(event) >= limit) break;
  return events;
}

await step('exec', () => sandbox.exec('cd /tmp && export A=1; echo hi'));
await step('state', () => sandbox.exec('pwd; echo $A'));
await step('fails', () => sandbox.exec('echo no >&2; exit 3'));
await step('setEnvVars', async () => {
  await sandbox.setEnvVars({ B: 'two words', A: undefined });
  return sandbox.exec('echo "${A-unset} $B"');
});
await step('execStreaming', async () => {
  const seen = [];
  const done = await sandbox.exec('echo out; echo err >&2', { stream: true, onOutput: (kind, data) => seen.push([kind, data]) });
  return { seen, exitCode: done.exitCode };
});
await step('timeout', () => sandbox.exec('sleep 60', { timeout: 300 }));
await step('afterTimeout', () => sandbox.exec('echo $B'));
await step('execStream', async () => all(await sandbox.execStream('echo one; exit 4')));

await step('files', async () => {
  await sandbox.mkdir('/workspace/d/e', { recursive: true });
  await sandbox.writeFile('/workspace/d/a.txt', 'text');
  await sandbox.renameFile('/workspace/d/a.txt', '/workspace/d/b.txt');
  await sandbox.moveFile('/workspace/d/b.txt', '/workspace/d/e/c.txt');
  const { content } = await sandbox.readFile('/workspace/d/e/c.txt');
  const streamed = await collectFile(await sandbox.readFileStream('/workspace/d/e/c.txt'));
  const { files } = await sandbox.listFiles('/workspace/d', { recursive: true });
  await sandbox.deleteFile('/workspace/d/e/c.txt');
  const { exists } = await sandbox.exists('/workspace/d/e/c.txt');
  return { content, streamed: streamed.content, names: files.map((one) => one.relativePath), exists };
});
await step('noFile', () => sandbox.readFile('/nope'));

await step('process', async () => {
  const server = await sandbox.startProcess('cd /workspace && echo Serving && exec python3 -m http.server 8181', { processId: 'web' });
  const { line } = await server.waitForLog(/Serv\w+/);
  await server.waitForPort(8181, { timeout: 20000 });
  const listed = (await sandbox.listProcesses()).map((one) => one.id);
  return { id: server.id, line, listed, status: await server.getStatus() };
});
await step('preview', async () => {
  const { url } = await sandbox.exposePort(8181, { hostname: 'example.com', token: 'tok_1' });
  const ask = async (address) => {
    const answer = await proxyToSandbox(new Request(address), env);
    return { status: answer.status, body: await answer.text() };
  };
  const good = await ask(`${url}d/`);
  const wrong = await ask(url.replace('tok_1', 'tok_2'));
  const listed = await sandbox.getExposedPorts('example.com');
  const moved = await ask(`${url}d`);
  await sandbox.unexposePort(8181);
  const gone = await ask(url);
  return { url, good, wrong, gone, listed, moved, foreign: await proxyToSandbox(new Request('https://example.com/'), env) };
});
await step('kill', async () => {
  await sandbox.killProcess('web');
  return (await sandbox.getProcess('web')).status;
});
await step('exit', async () => {
  const process = await sandbox.startProcess('sleep 0.2; exit 7');
  return process.waitForExit(10000);
});
await step('early', async () => {
  const process = await sandbox.startProcess('exit 3');
  return process.waitForPort(8182, { timeout: 5000 });
});

await step('session', async () => {
  const session = await sandbox.createSession({ id: 'other', cwd: '/usr', env: { WHO: 'me' } });
  const { stdout } = await session.exec('pwd; echo $WHO');
  await sandbox.deleteSession('other');
  return stdout;
});
await step('code', async () => {
  const context = await sandbox.createCodeContext({ language: 'python', envVars: { Q: '42' }, cwd: '/tmp' });
  const seen = [];
  const done = await sandbox.runCode('import os\nprint(os.environ["Q"], os.getcwd())\n6*7', { context, onStdout: (one) => seen.push(one.text) });
  const failed = await sandbox.runCode('1/0', { context });
  const listed = (await sandbox.listCodeContexts()).length;
  await sandbox.deleteCodeContext(context.id);
  return { seen, text: done.results[0].text, error: failed.error?.name, listed };
});
await step('watch', async () => {
  const events = all(await sandbox.watch('/workspace/d'), 2);
  await sandbox.writeFile('/workspace/d/seen.txt', 'x');
  return (await events).map((one) => one.eventType ?? one.type);
});
await step('checkChanges', async () => {
  const { version } = await sandbox.checkChanges('/workspace/d');
  await sandbox.writeFile('/workspace/d/seen.txt', 'y');
  return (await sandbox.checkChanges('/workspace/d', { since: version })).status;
});
await step('destroy', async () => {
  const { url } = await sandbox.exposePort(8181, { hostname: 'example.com' });
  await sandbox.stop();
  const stale = await proxyToSandbox(new Request(url), env);
  await sandbox.destroy();
  const { stdout } = await sandbox.exec('ls /workspace; pwd');
  return { stale: stale.status, code: (await stale.json()).code, stdout };
});
process.stdout.write(JSON.stringify(found) + '\n');
process.exit(0);
