// Requests to the server (docs/annotator_api.md). Every failure is a Problem with a message for people.

export class Problem extends Error {
  constructor(type, message, status) {
    super(message);
    this.type = type;
    this.status = status;
  }

  /** Nobody answered, or only something in between did: the request may or may not have been carried out. */
  get unreachable() {
    return this.status === 0;
  }
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

async function once(method, path, body, name, signal) {
  let reply;
  let text;
  try {
    const headers = body === undefined ? {} : { "content-type": "application/json" };
    if (name) headers["idempotency-key"] = name;
    reply = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
    text = await reply.text();
  } catch {
    throw new Problem("Unreachable", "The server does not answer.", 0);
  }
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Problem("Unreachable", `Something other than the annotator answered (${reply.status}).`, 0);
  }
  if (reply.ok) return data;
  const { type = "Error", message = `The server answered ${reply.status}.` } = data.error ?? {};
  const problem = new Problem(type, message, reply.status);
  problem.wait = Number(reply.headers.get("retry-after")) || 1;
  throw problem;
}

/** Ask, and wait patiently where the server says "too fast": it has done nothing then, so asking again is safe. */
async function ask(method, path, body, name) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await once(method, path, body, name);
    } catch (error) {
      if (error.status !== 429 || attempt >= 4) throw error;
      await pause(error.wait);
    }
  }
}

const address = (path, query) => {
  const found = new URLSearchParams(query).toString();
  return found ? `${path}?${found}` : path;
};

export const get = (path, query = {}) => ask("GET", address(path, query));

/** For what is only guessed to be wanted: not asked again, and given up by the signal. */
export const glance = (path, query, signal) => once("GET", address(path, query), undefined, null, signal);

/** `name`: of a step, new for each; a request sent again under the same name is not carried out again. */
export const post = (path, body = {}, name = null) => ask("POST", path, body, name);
