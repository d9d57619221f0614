// The session on the screen. Steps go to the server one after the other, and only its replies change what is shown.

import { get, post, Problem } from "./api.js";
import { follow } from "./stream.js";

/** 128 random bits. (`crypto.randomUUID` exists only on encrypted pages.) */
const stepName = () => [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(36)).join("-");

/**
 * Events (`detail` in brackets): "session" - another session or a fresh copy (bool: another one);
 * "tokens" [from] - the tokens from there on changed; "head" - anything else changed; "stream" - it began, ended or
 * failed; "over" - the queue is empty.
 */
export class Work extends EventTarget {
  #connection;
  #steps = Promise.resolve();
  #pending = 0;
  #unfollow = null;
  #retried = 0;
  session = null;
  following = false;
  /** The continuation has stopped by itself before the end of the answer, for somebody to look at it. */
  paused = false;
  streamError = null;

  /** `pause()`: behind how many tokens a continuation pauses at the end of a sentence, or null. */
  constructor(connection, pause) {
    super();
    this.#connection = connection;
    this.pause = pause;
  }

  get tokens() {
    return this.session?.tokens ?? [];
  }

  get open() {
    return this.session?.status === "open";
  }

  /** A step is on its way, so what is shown is about to change. */
  get busy() {
    return this.#pending > 0;
  }

  get decided() {
    return this.session !== null && !this.open;
  }

  get canUndo() {
    return this.session !== null && (!this.open || this.session.can.undo);
  }

  get canRedo() {
    return this.open && this.session.can.redo;
  }

  anchorAt(position) {
    return this.session?.anchors.find((anchor) => anchor.position === position);
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** One after the other: a step pressed while another travels waits for it, and none is dropped. */
  #inTurn(step) {
    this.#pending += 1;
    const result = this.#steps.then(step).finally(() => { this.#pending -= 1; });
    this.#steps = result.catch(() => {});
    return result;
  }

  /** A request that is asked again once the connection healed; only for what may be asked twice. */
  async #patiently(request) {
    for (;;) {
      try {
        return await request();
      } catch (error) {
        if (!error.unreachable) throw error;
        await this.#connection.healed();
      }
    }
  }

  next(order) {
    return this.#inTurn(async () => {
      const found = await this.#patiently(() => post("/api/next", order ? { order } : {}));
      if (found.id === null) this.#leave();
      else this.#adopt(found);
    });
  }

  openItem(item) {
    return this.#inTurn(async () => this.#adopt(await this.#patiently(() => post(`/api/items/${item}/open`))));
  }

  load(id) {
    return this.#inTurn(async () => this.#adopt(await this.#patiently(() => get(`/api/sessions/${id}`))));
  }

  reload() {
    return this.#inTurn(() => this.#refresh());
  }

  async #refresh() {
    const id = this.session.id;
    const found = await this.#patiently(() => get(`/api/sessions/${id}`));
    if (this.session?.id === id) this.#adopt(found);
  }

  #leave() {
    this.#stopFollowing();
    this.session = null;
    this.#emit("over");
  }

  #adopt(session) {
    const another = this.session?.id !== session.id;
    this.#stopFollowing();
    this.session = session;
    this.streamError = null;
    this.paused = false;
    this.#emit("session", another);
    if (session.streaming) this.follow();
  }

  /**
   * One step: POST /api/sessions/{id}/{name}. Where no reply came, it is sent again under the same name of its own,
   * by which the server knows whether it is stored: nothing is lost and nothing happens twice. `body` may be a
   * function, asked when the steps before have arrived; null: there is nothing to do.
   */
  step(name, body = {}) {
    const { id } = this.session;
    return this.#inTurn(async () => {
      if (this.session?.id !== id) return;
      const own = stepName();
      const sent = typeof body === "function" ? body() : body;
      if (sent === null) return;
      for (;;) {
        try {
          await this.#apply(await post(`/api/sessions/${id}/${name}`, sent, own));
          return;
        } catch (error) {
          if (error.unreachable) {
            await this.#connection.healed();
          } else {
            // It may be that another tab moved on.
            if (error.status === 409) await this.#refresh();
            throw error;
          }
        }
      }
    });
  }

  async #apply({ before, head, kept, tokens }) {
    if (this.session?.id !== head.id) return;
    if (before !== this.session.version) {
      await this.#refresh();
      return;
    }
    this.#stopFollowing();
    this.streamError = null;
    this.paused = false;
    const shown = this.session.tokens.slice(0, kept).concat(tokens);
    this.session = { ...this.session, ...head, tokens: shown };
    this.#emit("tokens", kept);
    this.#emit("head");
    if (head.streaming) this.follow();
    else this.#emit("stream");
  }

  /** Ask for the rest of the answer; the server begins if nothing runs yet. */
  follow() {
    const { id, node } = this.session;
    this.#stopFollowing();
    this.following = true;
    this.paused = false;
    this.streamError = null;
    this.#emit("stream");
    // The first answer is what is to be judged: it comes whole.
    const pause = this.session.nodes[node].parent === null ? null : this.pause();
    this.#unfollow = follow(id, node, this.tokens.length, pause, {
      tokens: (data) => this.#arrived(data),
      done: (data) => this.#done(data),
      failed: (error) => {
        this.#stopFollowing();
        this.streamError = new Problem(error.type, error.message, 502);
        this.#emit("stream");
      },
      lost: () => this.#lost(id, node),
    });
  }

  /** `follow`, in its turn: the reply to a stop that is still on its way would end it again. */
  goOn() {
    return this.#inTurn(async () => {
      if (this.session !== null && !this.following) this.follow();
    });
  }

  #stopFollowing() {
    this.#unfollow?.();
    this.#unfollow = null;
    this.following = false;
  }

  #arrived({ node, start, tokens }) {
    if (node !== this.session.node) return;
    this.#retried = 0;
    if (start > this.tokens.length) {
      this.reload();
      return;
    }
    this.session.tokens.splice(start, Infinity, ...tokens);
    this.#emit("tokens", start);
  }

  #done({ node, head }) {
    this.#stopFollowing();
    const fits = head.node === node && head.node === this.session.node && head.length === this.tokens.length;
    if (fits) {
      Object.assign(this.session, head);
      this.paused = !head.ended && this.open;
    }
    // A step on its way brings its own state; otherwise another tab moved on.
    else if (this.#pending === 0) this.reload();
    this.#emit("head");
    this.#emit("stream");
  }

  async #lost(id, node) {
    this.#stopFollowing();
    this.#emit("stream");
    // It may be that only this stream was refused (429, 409): then the session tells, after a growing pause.
    this.#retried += 1;
    await new Promise((resolve) => { setTimeout(resolve, Math.min(8000, 100 * 2 ** this.#retried)); });
    await this.#connection.healed();
    if (this.session?.id !== id || this.following) return;
    await this.reload().catch((error) => { this.streamError = error; });
    const same = this.session?.id === id && this.session.node === node;
    if (same && !this.following && !this.session.ended && this.open && this.#retried < 6) this.follow();
    else this.#emit("stream");
  }
}
