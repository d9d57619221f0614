// Which token is selected, and how clicks and keys move there.

import { $, isField } from "./dom.js";

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
      // Reached by Tab while no token is selected (a click focuses it too, and selects by itself).
      const byKey = $("answer").matches(":focus-visible");
      if (byKey && this.#answer.selected === null && this.#answer.length > 0) this.goTo(0);
    });
    $("answer").addEventListener("pointerdown", (event) => {
      const position = this.#answer.positionOf(event.target);
      if (position !== null) this.#picker.alternatives.of(this.#target(position));
    });
    $("answer").addEventListener("pointerover", (event) => this.#ahead(() => this.#answer.positionOf(event.target)));
    document.addEventListener("pointerdown", (event) => {
      if (this.#picker.isOpen && !event.target.closest("#picker, #answer, footer, aside")) this.close();
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
      session: id, node, position, token: this.#work.tokens[position], before: this.#work.tokens[position - 1],
      anchor: this.#work.anchorAt(position),
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

  /** Close the list; the token stays selected, so that the keys go on from there. */
  close() {
    this.#picker.close();
    this.#answer.element(this.#answer.selected)?.setAttribute("aria-expanded", "false");
  }

  /** Another answer is shown: its first token is selected, and has the focus unless somebody is typing or reading. */
  begin() {
    this.#answer.select(0);
    this.#page.screen.showWhere();
    const busy = isField(document.activeElement) || document.querySelector("dialog[open]");
    if (!busy && this.#page.tabs.current === "answer") this.focusToken();
  }

  /** Select a token and bring it into sight. */
  goTo(position) {
    if (this.#page.tabs.current !== "answer") this.#page.tabs.go("answer");
    if (position >= this.#answer.length) return;
    this.select(position);
    this.#answer.element(position).scrollIntoView({ block: "nearest" });
  }

  /** Back to the selected token. */
  focusToken() {
    (this.#answer.element(this.#answer.selected) ?? $("answer")).focus({ preventScroll: true });
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
    // The first token of a new answer is selected before anybody has looked at it.
    const found = this.#answer.doubtful(way, !this.#picker.isOpen);
    if (found !== null) {
      this.goTo(found);
      this.#ahead(() => this.#answer.doubtful(way));
    } else this.#page.toast(way > 0 ? "No doubtful token further on." : "No doubtful token before.");
  }

  /** Into the field; where the list is closed, it opens. */
  type() {
    if (this.#page.tabs.current !== "answer") this.#page.tabs.go("answer");
    if (!this.#picker.isOpen) this.select(this.#answer.selected);
    if (this.#work.open) this.#picker.field.focus();
  }

  /** A digit outside of the field: it chooses from the list, or opens the list that it could choose from. */
  digit(digit, always = false) {
    if (!this.#picker.isOpen) this.select(this.#answer.selected);
    else if (always) this.#picker.chooseDigit(digit);
    else this.#picker.digit(digit);
  }

  /** Escape: first the alternatives close, then the continuation stops, then it leads back to the selected token. */
  escape() {
    if (this.#picker.isOpen) {
      this.close();
    } else if (this.#work.following) {
      this.#page.step("stop");
    } else if (this.#page.tabs.current !== "answer") {
      this.#page.tabs.go("answer");
    }
    if (this.#page.tabs.current === "answer") this.focusToken();
  }
}
