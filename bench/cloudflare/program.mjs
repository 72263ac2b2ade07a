// Prints one JSON object: milliseconds of each call of the real client, each call after the one before unless it says so.
import { SandboxClient } from '@cloudflare/sandbox';

const { baseUrl, token, rounds } = JSON.parse(process.argv[2]);
const client = new SandboxClient({ baseUrl, defaultHeaders: { authorization: `Bearer ${token}` }, retryTimeoutMs: 0 });

async function timed(run) {
  const began = performance.now();
  await run();
  return performance.now() - began;
}

async function many(count, run) {
  await run(); // what comes to be at the first use
  const found = [];
  for (let n = 0; n < count; n++) found.push(await timed(run));
  return found;
}

function expect(found, wanted) {
  if (found !== wanted) throw new Error(`expected ${wanted}, got ${String(found).slice(0, 80)}`);
}

async function runCode(context) {
  let text;
  await client.interpreter.runCodeStream(context, '1+1', 'python', { onResult: (one) => void (text = one.text) });
  expect(text, '2');
}

const contexts = [];
async function tenContexts() {
  const made = await Promise.all([...Array(10)].map(() => client.interpreter.createCodeContext({ language: 'python' })));
  await Promise.all(made.map((one) => runCode(one.id)));
  contexts.push(...made);
}
async function dropContexts() {
  await Promise.all(contexts.splice(0).map((one) => client.interpreter.deleteCodeContext(one.id)));
}

const found = {};
found.version = await many(rounds, () => client.utils.getVersion());
found.exec = await many(rounds, async () =>
  expect((await client.commands.execute('echo hi', '__DISABLE_SESSION__')).stdout, 'hi\n'));
found.session = await many(rounds, async () => expect((await client.commands.execute('echo hi', 'bench')).stdout, 'hi'));
const context = await client.interpreter.createCodeContext({ language: 'python' });
// The first context has its template loaded beside it, which takes a processor some seconds, once.
await new Promise((resolve) => setTimeout(resolve, 6000));
found.code = await many(rounds, () => runCode(context.id));
await client.interpreter.deleteCodeContext(context.id);
found.contexts = [];
for (let n = 0; n < 3; n++) {
  found.contexts.push(await timed(tenContexts));
  await dropContexts();
}
found.stdout = await many(3, async () => {
  const line = "head -c 10000000 /dev/zero | tr '\\0' x";
  expect((await client.commands.execute(line, 'bench')).stdout.length, 10_000_000);
});
process.stdout.write(JSON.stringify(found) + '\n');
process.exit(0);
