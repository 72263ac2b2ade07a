// Runs the whole Sandbox class of @cloudflare/sandbox, a Durable Object, in plain Node: what Workers give it is made
// here from Node's own parts, and its container is a sandbox of sandboxd's. Nothing of the package is changed.
import { DatabaseSync } from 'node:sqlite';
import { timingSafeEqual } from 'node:crypto';
import http from 'node:http';
import { Sandbox } from '@cloudflare/sandbox';

// What Workers have and Node has under another name, or not at all.
globalThis.IdentityTransformStream = TransformStream;
crypto.subtle.timingSafeEqual = timingSafeEqual;
Object.defineProperty(Response.prototype, 'webSocket', { value: null, configurable: true });

// Who stops reading a stream that it forwards rejects a promise there which nobody awaits; Workers only log that.
process.on('unhandledRejection', (reason) => {
  if (reason !== undefined) throw reason;
});

class Storage {
  #values = new Map();
  #alarm = null;
  constructor() {
    const database = new DatabaseSync(':memory:');
    this.sql = {
      exec: (query, ...values) => {
        const statement = database.prepare(query);
        return statement.columns().length ? statement.all(...values) : (statement.run(...values), []);
      },
    };
    this.kv = {
      get: (key) => this.#values.get(key),
      put: (key, value) => void this.#values.set(key, value),
      delete: (key) => this.#values.delete(key),
    };
  }
  async get(key) { return structuredClone(this.#values.get(key)); }
  async put(key, value) { this.#values.set(key, structuredClone(value)); }
  async delete(key) { return this.#values.delete(key); }
  async transaction(run) { return run(this); }
  async setAlarm(time) { this.#alarm = time; }
  async getAlarm() { return this.#alarm; }
  async deleteAlarm() { this.#alarm = null; }
  async sync() {}
}

class Container {
  running = false;
  #ended = Promise.withResolvers();
  constructor(settings, name) {
    this.settings = settings;
    this.name = name;
    this.headers = { authorization: `Bearer ${settings.token}` };
  }
  start() {
    this.running = true;
    this.#ended = Promise.withResolvers();
  }
  monitor() { return this.#ended.promise; }
  signal() { return this.destroy(); }
  async destroy() {
    await fetch(`${this.settings.url}/v1/sandboxes/${this.name}`, { method: 'DELETE', headers: this.headers });
    this.running = false;
    this.#ended.resolve();
  }
  getTcpPort(port) {
    return { fetch: (url, init) => (port === 3000 ? this.#api(url, init) : this.#service(port, url, init)) };
  }
  // Its own server is the container's API.
  #api(url, init) {
    const { pathname, search } = new URL(url);
    const request = new Request(`${this.settings.url}/cloudflare/sandboxes/${this.name}${pathname}${search}`, init);
    request.headers.set('authorization', this.headers.authorization);
    return fetch(request);
  }
  // A service of the sandbox's is behind a preview, which its own API exposes once.
  async #service(port, url, init) {
    const ports = `${this.settings.url}/v1/sandboxes/${this.name}/ports`;
    const headers = { ...this.headers, 'content-type': 'application/json' };
    await fetch(ports, { method: 'POST', headers, body: JSON.stringify({ port, public: true }) });
    const { items } = await (await fetch(ports, { headers })).json();
    const preview = new URL(items.find((one) => one.port === port).url);
    const { pathname, search } = new URL(url);
    const request = new Request(url, init);
    const options = {
      host: '127.0.0.1', port: preview.port, path: pathname + search, method: request.method,
      headers: { ...Object.fromEntries(request.headers), host: preview.host },
    };
    const body = Buffer.from(await request.arrayBuffer());
    return new Promise((resolve, reject) => {
      http.request(options, async (answer) => {
        const pieces = await Array.fromAsync(answer);
        resolve(new Response(Buffer.concat(pieces), { status: answer.statusCode, headers: answer.headers }));
      }).on('error', reject).end(body);
    });
  }
}

// A namespace of Durable Objects, as `env.Sandbox` is one: each name is one object of this process.
export function namespace(settings) {
  const objects = new Map();
  const idFromName = (name) => ({ name, toString: () => name });
  return {
    idFromName,
    get(id) {
      if (!objects.has(id.name)) {
        const ctx = {
          id,
          storage: new Storage(),
          container: new Container(settings, id.name),
          blockConcurrencyWhile: (run) => run(),
          waitUntil() {},
          abort() {},
        };
        objects.set(id.name, new Sandbox(ctx, { ...settings.env }));
      }
      return objects.get(id.name);
    },
  };
}
