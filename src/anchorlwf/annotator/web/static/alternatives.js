// What else could stand where, asked for once a position, or ahead: before anybody points at it.

import { get, glance } from "./api.js";

/** As many as are listed while somebody types. */
const FILTERED = 10;

export class Alternatives {
  #state = null;
  #asked = new Map();
  #vain = new Set();
  #ahead = null;

  /** Answers change below a correction: what was asked before no longer holds. */
  forget() {
    this.#asked.clear();
    this.#vain.clear();
    this.#giveWay();
  }

  /** Everything here is about one answer of one session. */
  #about({ session, node }) {
    const state = `${session}/${node}`;
    if (this.#state !== state) this.forget();
    this.#state = state;
  }

  #giveWay() {
    this.#ahead?.abort();
    this.#ahead = null;
  }

  /** Those of a target ({session, node, position, top}): {options, or null until `reply` has come}. */
  of(target, starts = "") {
    this.#about(target);
    const { session, node, position, top } = target;
    const key = `${position}/${starts}`;
    let found = this.#asked.get(key);
    if (!found) {
      this.#giveWay();
      const query = { node, position, top: starts ? FILTERED : top, ...(starts && { starts }) };
      found = { options: null, reply: get(`/api/sessions/${session}/alternatives`, query) };
      found.reply.then(({ options }) => { found.options = options; }, () => {
        if (this.#asked.get(key) === found) this.#asked.delete(key);
      });
      this.#asked.set(key, found);
    }
    return found;
  }

  /**
   * Have those of a target here already when it is pointed at. One such request travels at a time; the next one, and
   * every question of a person's, takes its place. The server answers only what it knows without the model.
   */
  async ahead(target) {
    this.#about(target);
    const { session, node, position, top } = target;
    const key = `${position}/`;
    if (this.#asked.has(key) || this.#vain.has(position)) return;
    this.#giveWay();
    const own = this.#ahead = new AbortController();
    const query = { node, position, top, known: true };
    // Failing is no harm here: whoever points at the token asks again, and is told what is wrong.
    const reply = await glance(`/api/sessions/${session}/alternatives`, query, own.signal).catch(() => null);
    if (this.#ahead !== own) return; // superseded, or about an answer that is gone
    this.#ahead = null;
    if (reply?.options) this.#asked.set(key, { options: reply.options, reply: Promise.resolve(reply) });
    else if (reply) this.#vain.add(position);
  }
}
