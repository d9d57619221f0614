// Whether the server is there. Once lost, it is asked again with growing pauses until it answers.

import { $ } from "./dom.js";
import { get } from "./api.js";

const FIRST = 0.4;
const LONGEST = 8;

export class Connection {
  #healing = null;
  #skipPause = () => {};

  constructor() {
    $("connection-now").addEventListener("click", () => this.#skipPause());
    window.addEventListener("online", () => this.#skipPause());
    document.addEventListener("visibilitychange", () => this.#skipPause());
  }

  get lost() {
    return this.#healing !== null;
  }

  /** Resolves when the server answers (again). Everybody who lost it waits for the same answer. */
  healed() {
    this.#healing ??= this.#heal().finally(() => {
      this.#healing = null;
      $("connection").hidden = true;
    });
    return this.#healing;
  }

  async #heal() {
    for (let wait = FIRST; ; wait = Math.min(LONGEST, wait * 2)) {
      try {
        await get("/api/me");
        return;
      } catch (error) {
        this.#say(error);
      }
      await new Promise((resolve) => {
        this.#skipPause = resolve;
        // Some randomness, so that twenty pages do not come back in the same moment.
        setTimeout(resolve, wait * 1000 * (0.8 + 0.4 * Math.random()));
      });
    }
  }

  #say(error) {
    const text = error.unreachable
      ? "The server does not answer. Everything confirmed so far is stored; this page goes on by itself."
      : error.message;
    if ($("connection-text").textContent !== text || $("connection").hidden) $("connection-text").textContent = text;
    $("connection").hidden = false;
  }
}
