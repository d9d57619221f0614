// Working time of the item, counted as the server does: a long pause counts as a minute at the most.

import { $, minutes } from "./dom.js";
import { post } from "./api.js";

const IDLE = 60;
const RENEW = 60;

export class Clock {
  #work;
  #since = performance.now();
  #seconds = null;
  #renewed = performance.now();

  constructor(work) {
    this.#work = work;
    setInterval(() => this.#tick(), 1000);
    work.addEventListener("session", () => this.#restart());
    work.addEventListener("head", () => this.#restart());
  }

  #restart() {
    if (this.#work.session.seconds !== this.#seconds) this.#since = performance.now();
    this.#seconds = this.#work.session.seconds;
    this.#tick();
  }

  #tick() {
    const { session, open } = this.#work;
    if (!session) return;
    const now = performance.now();
    const running = open ? Math.min(IDLE, (now - this.#since) / 1000) : 0;
    $("clock").textContent = minutes(session.seconds + running);
    if (open && (now - this.#renewed) / 1000 > RENEW && document.visibilityState === "visible") {
      this.#renewed = now;
      // Failing is no harm here: the next step says what is wrong, where it can be read.
      post(`/api/sessions/${session.id}/renew`).catch(() => {});
    }
  }
}
