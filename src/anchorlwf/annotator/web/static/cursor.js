// Which token is selected, and how clicks and keys move there.

import { $ } from "./dom.js";

const coarse = window.matchMedia("(pointer: coarse)");
/** So long (ms) a pointer rests on a token, or the keys rest, before what may be wanted next is asked for. */
const REST = 40;

export class Cursor {
  #page;
  #work;
  #answer;
  #picker;
  #timer = 0;

  constructor(page) {
    this.#page = page;
    this.#work = page.work;
    this.#answer = page.answer;
    this.#picker = page.picker;
    $("answer").addEventListener("click", (event) => this.#clicked(event));
    $("answer").addEventListener("focus", () => {
      // Reached by Tab (a click focuses it too, and selects by itself): begin where the model was unsure, else at the
      // start.
      const byKey = $("answer").matches(":focus-visible");
      if (byKey && this.#answer.selected === null && this.#answer.length > 0) this.goTo(this.#answer.doubtful(1) ?? 0);
    });
    $("answer").addEventListener("pointerdown", (event) => {
      const position = this.#answer.positionOf(event.target);
      if (position !== null) this.#picker.alternatives.of(this.#target(position));
    });
    $("answer").addEventListener("pointerover", (event) => this.#ahead(() => this.#answer.positionOf(event.target)));
    document.addEventListener("pointerdown", (event) => {
      if (this.#picker.isOpen && !event.target.closest("#picker, #answer, footer, aside")) this.leave();
    });
  }

  #clicked(event) {
    const position = this.#answer.positionOf(event.target);
    // Whoever marks text with the mouse wants to copy it.
    if (position === null || window.getSelection().type === "Range") return;
    // On a touch screen the field would bring up the keyboard over everything.
    this.select(position, !coarse.matches && this.#work.open);
  }

  #target(position) {
    const { id, node } = this.#work.session;
    return {
      session: id, node, position, token: this.#work.tokens[position], anchor: this.#work.anchorAt(position),
      beside: this.#answer.element(position), writable: this.#work.open, top: Math.min(10, this.#page.me.alternatives),
    };
  }

  /** Once all rests, look up what may be wanted next: `find` gives its position. */
  #ahead(find) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      const position = find();
      // While a step travels, what is shown is about to change.
      if (this.#work.tokens[position] && !this.#work.busy) this.#picker.alternatives.ahead(this.#target(position));
    }, REST);
  }

  /** Select a token and open its alternatives; the focus goes to it, or (`typing`) to their field. */
  select(position, typing = false) {
    if (this.#answer.length === 0) return;
    this.#answer.select(Math.max(0, Math.min(this.#answer.length - 1, position)));
    const at = this.#answer.selected;
    this.#page.screen.showWhere();
    const span = this.#answer.element(at);
    this.#picker.open(this.#target(at));
    span.setAttribute("aria-expanded", "true");
    (typing ? this.#picker.field : span).focus({ preventScroll: true });
  }

  /** Nothing is selected any more. */
  leave() {
    this.#picker.close();
    this.#answer.select(null);
    if (this.#work.session) this.#page.screen.showWhere();
  }

  /** Select a token and bring it into sight. */
  goTo(position) {
    if (this.#page.tabs.current !== "answer") this.#page.tabs.go("answer");
    if (position >= this.#answer.length) return;
    this.select(position);
    this.#answer.element(position).scrollIntoView({ block: "nearest" });
  }

  /** Back from the field to its token. */
  focusToken() {
    this.#answer.element(this.#answer.selected)?.focus({ preventScroll: true });
  }

  /** An arrow key, Home or End. */
  move(key) {
    const from = this.#answer.selected;
    const last = this.#answer.length - 1;
    if (from === null) {
      this.goTo(key === "End" ? last : 0);
      return;
    }
    const step = {
      ArrowLeft: (at) => this.#answer.beside(at, "left"), ArrowRight: (at) => this.#answer.beside(at, "right"),
      ArrowUp: (at) => this.#answer.across(at, -1), ArrowDown: (at) => this.#answer.across(at, 1),
      Home: () => 0, End: () => last,
    }[key];
    const to = Math.max(0, Math.min(last, step(from)));
    this.goTo(to);
    this.#ahead(() => (this.#answer.selected === to ? step(to) : null));
  }

  /** On to the next token that the model was unsure of (1), or back to the one before (-1). */
  doubtful(way) {
    const found = this.#answer.doubtful(way);
    if (found !== null) {
      this.goTo(found);
      this.#ahead(() => this.#answer.doubtful(way));
    } else this.#page.toast(way > 0 ? "No doubtful token further on." : "No doubtful token before.");
  }

  /** Into the field. */
  type() {
    if (this.#work.open && this.#picker.isOpen) this.#picker.field.focus();
    else if (this.#answer.selected !== null) this.select(this.#answer.selected);
  }

  /** Escape: first the alternatives close, then the continuation stops, then nothing is selected. */
  escape() {
    if (this.#picker.isOpen) {
      this.#picker.close();
      this.#answer.element(this.#answer.selected)?.setAttribute("aria-expanded", "false");
    } else if (this.#work.following) {
      this.#page.step("stop");
    } else {
      this.leave();
    }
  }
}
