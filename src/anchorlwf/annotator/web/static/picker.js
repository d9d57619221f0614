// What else could stand at a token: opens beside it. In its field everything typed is text, which filters the list or
// is put there as it is; arrows and Enter choose, and so do digits, with Alt or outside of the field.

import { Alternatives } from "./alternatives.js";
import { post } from "./api.js";
import { chip } from "./answer.js";
import { make, percent, tell } from "./dom.js";
import { plain } from "./tokens.js";

const ROWS = 10;
const TYPING_PAUSE = 50;
/** What it takes when full, with what was typed, and the bars above and below the page (pixels). */
const HEIGHT = 420;
/** What it takes at least, however little room there is; its list scrolls then. */
const LEAST = 220;
const BAR = 72;

export class Picker {
  #element;
  #on;
  #rows = [];
  #asked = null;
  #timer = 0;
  #options = [];
  #highlight = -1;
  #target = null;
  /** What the text in the field would be as tokens, of the text for which that is known. */
  #drafted = { value: null, text: "" };
  /** A key that came sooner than the alternatives it chooses among: carried out once they are here. */
  #early = null;

  /** `on`: {choose(position, body, shown), close(), move(key), confidence(way)}. */
  constructor(element, on) {
    this.#element = element;
    this.#on = on;
    this.alternatives = new Alternatives();
    this.field = make("textarea", {
      class: "field", rows: 1, spellcheck: false, autocapitalize: "off", dir: "auto",
      placeholder: "Type what should stand here", "aria-label": "What should stand here", "aria-haspopup": "listbox",
      "aria-controls": "options", "aria-autocomplete": "list", autocomplete: "off",
    });
    this.list = make("ol", { id: "options", role: "listbox", "aria-label": "Alternatives" });
    this.space = make("button", { type: "button", class: "small space", "aria-pressed": "true" }, "␣ keep the space");
    this.space.title = "Never before punctuation, or at the beginning of a line";
    this.end = make("button", { type: "button", class: "small" }, "put it, and end there");
    this.preview = make("div", { class: "preview", "aria-live": "polite" });
    this.trouble = make("p", { class: "trouble", role: "alert", hidden: true });
    this.about = make("div", { class: "about" });
    this.hint = make("p", { class: "hint" });
    const buttons = make("div", { class: "picker-buttons" }, this.space, this.end);
    element.append(this.about, this.field, this.preview, this.list, buttons, this.hint, this.trouble);
    for (let row = 0; row < ROWS; row += 1) this.#rows.push(this.#row(row));
    this.#listen();
  }

  #row(index) {
    const digit = make("kbd", { "aria-hidden": "true" }, String((index + 1) % 10));
    const text = make("span", { class: "option-text" });
    const bar = make("span", { class: "option-bar", "aria-hidden": "true" });
    const number = make("span", { class: "option-p" });
    const about = { id: `option-${index}`, role: "option", "aria-selected": "false" };
    const element = make("li", about, digit, text, bar, number);
    element.row = index;
    return { element, text, bar, number };
  }

  #listen() {
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest("li")?.row;
      if (row !== undefined) this.chooseRow(row);
    });
    // The field keeps the focus while a row is clicked.
    this.list.addEventListener("pointerdown", (event) => event.preventDefault());
    this.space.addEventListener("click", () => {
      this.space.setAttribute("aria-pressed", String(!this.#keepsSpace));
      this.#typed();
      this.field.focus();
    });
    this.end.addEventListener("click", () => this.choose({ end: true }));
    this.field.addEventListener("input", () => this.#input());
    this.field.addEventListener("keydown", (event) => this.#key(event));
    for (const kind of ["focus", "blur"]) this.field.addEventListener(kind, () => this.#showHint());
  }

  #input() {
    this.#grow();
    this.#early = null;
    // Enter may come sooner than any reply: from the first letter on it means what was typed.
    this.#light(-1);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#typed(), TYPING_PAUSE);
  }

  /** What chooses now. Digits beside the entries only where they would be taken for choosing, and not for text. */
  #showHint() {
    const typing = document.activeElement === this.field;
    this.#element.classList.toggle("plain-rows", typing || this.#holdsNumbers);
    const choose = typing ? "↑ ↓ or Alt+digit choose" : "A digit chooses, Enter leads to the field";
    const text = !this.#target?.writable ? "Decided: press u to change it."
      : this.#holdsNumbers && !typing ? "A digit is typed, Alt+digit chooses" : choose;
    this.hint.textContent = typing && this.#target?.writable ? `${text}, Ctrl+Enter ends it` : text;
  }

  /** The entries are numbers themselves, so that a digit is more likely text. */
  get #holdsNumbers() {
    return this.#options.some((option) => /^\s*\p{N}/u.test(option.text));
  }

  get #keepsSpace() {
    return !this.space.hidden && this.space.getAttribute("aria-pressed") === "true";
  }

  get #isShown() { return this.#element.dataset.shown !== undefined; }

  get isOpen() {
    return this.#target !== null;
  }

  #key(event) {
    // Enter and arrows belong to the input method while it composes a character.
    if (event.isComposing) return;
    const empty = this.field.value === "";
    const { key } = event;
    const digit = digitWithAlt(event);
    if (digit !== null) this.chooseDigit(digit);
    else if (key === "Enter" && (event.ctrlKey || event.metaKey)) this.choose({ end: true });
    else if (event.ctrlKey || event.metaKey || event.altKey) return;
    else if (key === "Enter" && !event.shiftKey) this.choose();
    else if (key === "Escape") this.#on.close();
    else if (key === "ArrowDown") this.#light(this.#highlight + 1);
    else if (key === "ArrowUp") this.#light(this.#highlight - 1);
    else if (empty && ["ArrowLeft", "ArrowRight", "Home", "End"].includes(key)) this.#on.move(key);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Open for a token: {session, node, position, token, before (the token before it), anchor, beside, writable}. */
  open(target) {
    this.#target = target;
    clearTimeout(this.#timer);
    // What is still listed belongs to another token: no key may choose from it.
    this.#options = [];
    this.#early = null;
    delete this.#element.dataset.shown;
    this.#light(-1);
    if (this.field.value !== "") this.field.value = "";
    this.field.style.height = "";
    this.field.disabled = !target.writable;
    this.preview.replaceChildren();
    tell(this.trouble, null);
    this.space.hidden = !/^\s/.test(target.token.text) || target.token.special === true;
    this.space.setAttribute("aria-pressed", "true");
    this.end.hidden = !target.writable;
    this.refreshAnchor(target.anchor);
    this.#element.hidden = false;
    this.#showHint();
    // Asked before the page is laid out, so that the server works meanwhile.
    this.#ask("");
    this.#place();
  }

  refreshAnchor(anchor) {
    if (!anchor) {
      this.about.hidden = true;
      return;
    }
    const button = (name, sign, key, way) => {
      const made = make("button", { type: "button", class: "small", ariaLabel: name }, sign, make("kbd", {}, key));
      made.addEventListener("click", () => this.#on.confidence(way));
      return made;
    };
    const less = button("Less confidence", "−", "[", -1);
    const more = button("More confidence", "+", "]", 1);
    const instead = anchor.rejected ? [" instead of ", chip(anchor.rejected)] : [];
    this.about.replaceChildren(make("span", {}, "Anchor", ...instead),
      make("span", { class: "about-confidence" }, less, make("b", {}, percent(anchor.confidence)), more));
    this.about.hidden = false;
  }

  close() {
    this.#target = null;
    this.#asked = null;
    this.#early = null;
    clearTimeout(this.#timer);
    this.#element.hidden = true;
  }

  /** Say what went wrong; what was typed is still there. */
  fail(message, typed = "") {
    this.field.value = typed;
    tell(this.trouble, message);
  }

  #place() {
    if (getComputedStyle(this.#element).position === "fixed") return; // a sheet at the bottom of narrow screens
    const { beside } = this.#target;
    const around = this.#element.parentElement.getBoundingClientRect();
    const boxes = beside.getClientRects();
    const box = boxes[0];
    const size = this.#element.offsetWidth;
    const room = window.innerHeight - BAR - boxes[boxes.length - 1].bottom;
    // Above the token where there is no room below; from there it grows upwards.
    const above = room < HEIGHT && box.top - BAR > Math.max(room, HEIGHT);
    this.#element.style.setProperty("--room", `${Math.max(LEAST, above ? box.top - BAR : room)}px`);
    const left = Math.max(0, Math.min(box.left - around.left - 12, around.width - size));
    this.#element.style.left = `${left}px`;
    this.#element.style.top = above ? "auto" : `${boxes[boxes.length - 1].bottom - around.top + 6}px`;
    this.#element.style.bottom = above ? `${around.bottom - box.top + 6}px` : "auto";
  }

  #grow() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight + 2}px`;
  }

  async #ask(starts) {
    const target = this.#target;
    const asked = this.#asked = this.alternatives.of(target, starts);
    if (asked.options) {
      this.#show(asked.options, starts);
      return;
    }
    this.#element.classList.add("waiting");
    try {
      const { options } = await asked.reply;
      if (this.#asked === asked) this.#show(options, starts);
    } catch (error) {
      if (this.#asked !== asked) return;
      this.#show([], starts);
      tell(this.trouble, error.message);
    }
  }

  #show(options, starts) {
    this.#options = options;
    this.#element.classList.remove("waiting");
    const largest = Math.max(...options.map((option) => option.p), 1e-9);
    this.#rows.slice(0, options.length).forEach(({ element, text, bar, number }, index) => {
      const option = options[index];
      element.classList.toggle("stands", option.stands);
      text.replaceChildren(chip(option));
      bar.style.setProperty("--share", option.p / largest);
      number.textContent = percent(option.p);
    });
    const wanted = this.#rows.slice(0, options.length).map((row) => row.element);
    if (this.list.children.length !== wanted.length) this.list.replaceChildren(...wanted);
    this.#element.dataset.shown = `${this.#target.node}/${this.#target.position}/${starts}`;
    this.#showHint();
    // Enter without typing takes the best of what does not stand there; after typing, what was typed.
    this.#light(starts || this.field.value ? -1 : options.findIndex((option) => !option.stands));
    const early = this.#early;
    this.#early = null;
    early?.();
  }

  #light(index) {
    const count = this.#options.length;
    const least = this.field.value === "" ? 0 : -1; // -1: what was typed
    const next = count === 0 ? -1 : Math.max(least, Math.min(count - 1, index));
    this.#rows.forEach(({ element }, row) => element.setAttribute("aria-selected", String(row === next)));
    if (next >= 0 && next !== this.#highlight) this.#rows[next].element.scrollIntoView({ block: "nearest" });
    this.#highlight = next;
    if (next >= 0) this.field.setAttribute("aria-activedescendant", `option-${next}`);
    else this.field.removeAttribute("aria-activedescendant");
    this.preview.classList.toggle("lit", next < 0);
  }

  async #typed() {
    const target = this.#target;
    if (!target) return;
    const { value } = this.field;
    this.#ask(value.trim().slice(0, 200));
    if (value === "") {
      this.preview.replaceChildren();
      return;
    }
    const { session, node, position, before } = target;
    const space = this.#keepsSpace;
    try {
      const { tokens } = await post(`/api/sessions/${session}/tokenize`, { node, position, text: value, space });
      if (this.#target !== target || this.field.value !== value || this.#keepsSpace !== space) return;
      this.#drafted = { value, text: plain(tokens) };
      const shown = tokens.slice(0, 40).map((token) => chip(token));
      if (before) shown.unshift(chip(before, "before"));
      this.preview.replaceChildren(...shown, make("span", { class: "quiet" },
        ` ${tokens.length} ${tokens.length === 1 ? "token" : "tokens"}, Enter puts it there`));
    } catch (error) {
      if (this.#target === target) tell(this.trouble, error.message);
    }
  }

  /** A digit pressed outside of the field: it chooses, but where the entries are numbers it is the first of a text. */
  digit(digit) {
    if (!this.#isShown) this.#early = () => this.digit(digit);
    else if (!this.#holdsNumbers) this.chooseDigit(digit);
    else if (this.#target.writable) {
      this.field.focus();
      this.field.value += digit;
      this.#input();
    }
  }

  /** The row a digit names: 1 to 9, and 0 for the tenth. */
  chooseDigit(digit) {
    if (this.#isShown) this.chooseRow((Number(digit) + 9) % 10);
    else this.#early = () => this.chooseDigit(digit);
  }

  chooseRow(row, end = false) {
    const option = this.#options[row];
    if (!option || !this.#target?.writable) return;
    this.#on.choose(this.#target.position, { token_ids: [option.id], end }, option);
  }

  /** What Enter means now; `end`: and the answer ends behind it. */
  choose({ end = false } = {}) {
    if (!this.#target?.writable) return;
    if (this.#highlight >= 0) {
      this.chooseRow(this.#highlight, end);
    } else if (this.field.value !== "") {
      const text = this.field.value;
      const shown = this.#drafted.value === text ? this.#drafted.text : text;
      this.#on.choose(this.#target.position, { text, space: this.#keepsSpace, end }, { text: shown });
    } else if (!this.#isShown) {
      this.#early = () => this.choose({ end });
    }
  }
}

/** The digit that is pressed together with Alt (its key may be another character then), or null. */
export function digitWithAlt(event) {
  const only = event.altKey && !event.ctrlKey && !event.metaKey;
  return (only && /^(?:Digit|Numpad)(\d)$/.exec(event.code)?.[1]) || null;
}
