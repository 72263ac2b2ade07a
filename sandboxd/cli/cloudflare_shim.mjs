// node --import ./shim.mjs program.mjs: lets @cloudflare/sandbox, which is made for Workers, load in plain Node.
import { register } from 'node:module';

// What the package takes from the Workers runtime, as far as its clients use it.
const workers = `
export class DurableObject { constructor(ctx, env) { this.ctx = ctx; this.env = env; } }
export class WorkerEntrypoint { constructor(ctx, env) { this.ctx = ctx; this.env = env; } }
export class RpcTarget {}
export const env = {};
const span = { setAttribute() {} };
export const tracing = { enterSpan(name, run, ...given) { return run(span, ...given); } };
`;
const hook = `
const WORKERS = 'data:text/javascript,' + encodeURIComponent(${JSON.stringify(workers)});
export async function resolve(name, context, next) {
  if (name === 'cloudflare:workers') return { url: WORKERS, shortCircuit: true, format: 'module' };
  // Its dist imports without extensions, which only bundlers understand.
  if (context.parentURL?.includes('/@cloudflare/containers/') && name.startsWith('.') && !name.endsWith('.js'))
    return next(name + '.js', context);
  return next(name, context);
}`;
register('data:text/javascript,' + encodeURIComponent(hook));
