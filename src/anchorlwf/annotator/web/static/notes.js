// Note and tags: stored a moment after the typing stops, and before anything else happens to the item.

import { $ } from "./dom.js";

const PAUSE = 700;
const split = (text) => [...new Set(text.split(",").map((tag) => tag.trim()).filter((tag) => tag !== ""))];

export class Notes {
  #work;
  #timer = 0;
  #session = null;
  #left;

  /** `left()`: somebody is done with the fields. */
  constructor(work, left) {
    this.#work = work;
    this.#left = left;
    for (const field of [$("note"), $("tags")]) {
      field.addEventListener("input", () => {
        $("notes-state").textContent = "";
        clearTimeout(this.#timer);
        this.#timer = setTimeout(() => this.flush(), PAUSE);
      });
      field.addEventListener("change", () => this.flush());
      field.addEventListener("keydown", (event) => {
        if (event.key !== "Escape") return;
        event.stopPropagation();
        this.#left();
      });
    }
  }

  /** Show what is stored, except where somebody is typing. */
  show() {
    const { id, note, tags, status } = this.#work.session;
    const another = this.#session !== id;
    this.#session = id;
    const put = (field, value) => {
      if (another || (document.activeElement !== field && field.value !== value)) field.value = value;
      field.disabled = status !== "open";
    };
    put($("note"), note);
    put($("tags"), tags.join(", "));
    if (!another) return;
    $("notes-state").textContent = "";
    $("notes").open = note !== "" || tags.length > 0;
  }

  /** Store what is new. */
  async flush() {
    clearTimeout(this.#timer);
    const { session } = this.#work;
    if (!session || session.id !== this.#session || session.status !== "open") return;
    const [text, tags] = [$("note").value, split($("tags").value)];
    try {
      if (text !== session.note) await this.#work.step("note", { text });
      else if (tags.join() === session.tags.join()) return;
      if (tags.join() !== session.tags.join()) await this.#work.step("tags", { tags });
      $("notes-state").textContent = "Stored.";
    } catch (error) {
      $("notes-state").textContent = error.message;
    }
  }
}
