// The answer: one element per token, made once. Selecting touches two of them, a step only those that changed.

import { Blocks, reveal } from "./blocks.js";
import { make, percent } from "./dom.js";
import { bytes, fill, joinBytes, level, look, spoken } from "./tokens.js";

/** Tokens on either side of the selected one whose spaces are marked. */
const NEAR = 4;
/** The share of an answer's tokens that is tinted where its rarest are, unless the model was as good as certain. */
const RAREST = 0.1;
const CERTAIN = 0.999;

export class Answer {
  #root;
  #blocks;
  #spans = [];
  #tokens = [];
  #joined = new Map();
  #anchors = new Map();
  #cut = [];
  /** Up to which probability a token is among the rarest tenth, two thirds of it, a third of it. */
  #rare = [0, 0, 0];
  #calibrated = 0;
  #tint = "rarest";
  selected = null;

  constructor(root) {
    this.#root = root;
    this.#blocks = new Blocks(root);
  }

  get length() {
    return this.#spans.length;
  }

  element(position) {
    return this.#spans[position];
  }

  positionOf(element) {
    return element.closest?.(".t")?.position ?? null;
  }

  /**
   * Show other tokens from `from` on; elements whose token stays are kept. Where the selected one goes, selection and
   * focus stay at its place. Returns whether it went.
   */
  show(tokens, from) {
    const { selected } = this;
    const focused = this.#spans[selected] === document.activeElement;
    let same = Math.min(from, this.length);
    while (same < this.length && same < tokens.length && this.#tokens[same].id === tokens[same].id) {
      if (this.#tokens[same].p !== tokens[same].p) this.#dress(same, tokens[same]);
      same += 1;
    }
    if (same < this.length) this.#shorten(same);
    for (let at = same; at < tokens.length; at += 1) this.#add(tokens[at]);
    if (same < tokens.length) this.#refreshBytes(same, tokens.length);
    else this.#refreshBytes(same - 1, same);
    // While tokens stream in one by one, all of them are looked at again only now and then.
    const { length } = tokens;
    if (length < 200 || length < this.#calibrated || length > 1.1 * this.#calibrated) this.calibrate();
    if (this.selected === selected) return false;
    this.select(Math.min(selected, this.length - 1));
    if (focused) (this.#spans[this.selected] ?? this.#root).focus({ preventScroll: true });
    return true;
  }

  clear() {
    this.select(null);
    this.#blocks = new Blocks(this.#root);
    this.#root.replaceChildren();
    this.#spans = [];
    this.#tokens = [];
    this.#joined.clear();
    this.#anchors.clear();
    this.#calibrated = 0;
  }

  #shorten(count) {
    if (this.selected !== null && this.selected >= count) this.select(null);
    for (let at = count; at < this.length; at += 1) {
      this.#joined.delete(at);
      this.#anchors.delete(at);
    }
    this.#tokens.length = count;
    this.#blocks.cut(this.#spans, count, this.#tokens);
  }

  #add(token) {
    const span = document.createElement("span");
    span.position = this.length;
    span.className = look(token);
    this.#paint(span, token, this.length);
    fill(span, token);
    this.#spans.push(span);
    this.#tokens.push(token);
    this.#blocks.add(span, token);
  }

  #dress(position, token) {
    this.#tokens[position] = token;
    const span = this.#spans[position];
    const kept = ["anchor", "on", "near", "pending", "broken", "more"].filter((name) => span.classList.contains(name));
    span.className = [look(token), ...kept].join(" ");
    span.level = 0;
    this.#paint(span, token, position);
  }

  /** What is tinted: the "rarest" tenth of the answer, everything by its "probability", or "nothing". */
  set tint(tint) {
    this.#tint = tint;
    this.calibrate();
  }

  /** Up to which probability tokens are tinted, where the rarest are; 0: none. */
  get rare() {
    return this.#rare[0];
  }

  /** Find out which tokens of this answer are rare: one model is less sure of everything than another. */
  calibrate() {
    this.#calibrated = this.length;
    // What people put there is rare by itself.
    const own = this.#tokens.filter((_, at) => !this.#anchors.has(at));
    const known = own.map((token) => token.p).filter((p) => p !== null && p < CERTAIN).sort((a, b) => a - b);
    this.#rare = [1, 2 / 3, 1 / 3].map((part) => {
      let count = Math.min(known.length, Math.ceil(this.length * RAREST * part));
      // Where more tokens have the same probability than there is room for, none of them is among the rarest.
      while (count > 0 && known[count] === known[count - 1]) count -= 1;
      return known[count - 1] ?? 0;
    });
    this.#tokens.forEach((token, at) => this.#paint(this.#spans[at], token, at));
  }

  #level({ p }, position) {
    if (p === null || this.#anchors.has(position) || this.#tint === "nothing") return 0;
    return this.#tint === "probability" ? level(p) : 2 * this.#rare.filter((bound) => p <= bound).length;
  }

  #paint(span, token, position) {
    const now = this.#level(token, position);
    if (span.level === now) return;
    span.classList.remove(`p${span.level}`);
    span.classList.add(`p${now}`);
    span.level = now;
  }

  /** Bytes of one character may be spread over tokens: look at the whole run around what changed. */
  #refreshBytes(from, to) {
    const isBytes = (at) => this.#tokens[at]?.hex !== undefined;
    let at = from;
    while (isBytes(at - 1)) at -= 1;
    while (at < to) {
      if (!isBytes(at)) {
        at += 1;
        continue;
      }
      let end = at;
      while (isBytes(end)) end += 1;
      joinBytes(this.#tokens.slice(at, end)).forEach((text, index) => this.#join(at + index, text));
      at = end;
    }
  }

  #join(position, text) {
    if (this.#joined.has(position) && this.#joined.get(position) === text) return;
    this.#joined.set(position, text);
    fill(this.#spans[position], this.#tokens[position], text);
    this.#spans[position].classList.toggle("broken", text === undefined);
    // A token that only goes on with a character takes no room between the letters: the style sheet draws a tick.
    this.#spans[position].classList.toggle("more", text === "");
  }

  /** Mark the anchors; only the differences are touched. */
  markAnchors(anchors) {
    const wanted = new Map(anchors.map((anchor) => [anchor.position, anchor]));
    for (const position of this.#anchors.keys()) {
      if (!wanted.has(position)) this.#spans[position]?.classList.remove("anchor");
    }
    for (const position of wanted.keys()) this.#spans[position]?.classList.add("anchor");
    const other = this.#anchors.size !== wanted.size || [...wanted.keys()].some((at) => !this.#anchors.has(at));
    this.#anchors = wanted;
    if (other) this.calibrate();
    if (this.selected !== null) this.#name(this.#spans[this.selected]);
  }

  /** Show at once what was chosen, while the server still thinks about it; what stands behind it will not stay. */
  expect(position, text) {
    const span = this.#spans[position];
    if (!span) return;
    span.textContent = text;
    span.classList.add("pending");
    this.#cut = [span.block.element, span.block.fold?.element].filter(Boolean);
    for (const element of this.#cut) element.classList.add("cut");
  }

  /** Take `expect` back. */
  settle(position) {
    for (const element of this.#cut) element.classList.remove("cut");
    this.#cut = [];
    const span = this.#spans[position];
    if (!span?.classList.contains("pending")) return;
    span.classList.remove("pending");
    fill(span, this.#tokens[position], this.#joined.get(position));
  }

  select(position) {
    const before = this.#spans[this.selected];
    this.#around(this.selected, false);
    if (before) {
      before.classList.remove("on");
      for (const name of ["role", "tabindex", "aria-label", "aria-expanded", "aria-haspopup"]) {
        before.removeAttribute(name);
      }
    }
    this.selected = position !== null && position >= 0 && position < this.length ? position : null;
    const span = this.#spans[this.selected];
    this.#around(this.selected, true);
    // The group itself is the way in by Tab only while no token is.
    this.#root.tabIndex = span ? -1 : 0;
    if (!span) return;
    reveal(span);
    span.classList.add("on");
    // Only the selected token is a button: a screen reader reads the others as plain text.
    span.setAttribute("role", "button");
    span.setAttribute("tabindex", "0");
    span.setAttribute("aria-haspopup", "dialog");
    this.#name(span);
  }

  #around(position, near) {
    if (position === null) return;
    const beside = this.#spans.slice(Math.max(0, position - NEAR), position + NEAR + 1);
    for (const span of beside) span.classList.toggle("near", near);
  }

  #name(span) {
    const token = this.#tokens[span.position];
    const parts = [spoken(token, this.#joined.get(span.position))];
    if (token.p !== null) parts.push(percent(token.p));
    if (this.#anchors.has(span.position)) parts.push("anchor");
    span.setAttribute("aria-label", parts.join(", "));
  }

  /** The neighbour in reading order that lies to the "left" or "right" on the screen, whichever way the text runs. */
  beside(position, side) {
    const here = this.#box(position);
    const onLine = (at) => {
      const box = this.#box(at);
      return box && Math.abs(box.top - here.top) < here.height / 2 ? box : null;
    };
    const next = onLine(position + 1);
    const previous = onLine(position - 1);
    const middle = (box) => box.left + box.width / 2;
    const backwards = next ? middle(next) < middle(here) : previous ? middle(previous) > middle(here) : false;
    return position + ((side === "right") === backwards ? -1 : 1);
  }

  /** The token above (-1) or below (1), nearest in its line. */
  across(position, way) {
    const here = this.#box(position);
    const middle = here.left + here.width / 2;
    let line = null;
    let best = position;
    let nearest = Infinity;
    for (let at = position + way; at >= 0 && at < this.length; at += way) {
      const box = this.#box(at);
      if (!box || Math.abs(box.top - here.top) < here.height / 2) continue;
      line ??= box.top;
      if (Math.abs(box.top - line) > here.height / 2) break;
      const distance = Math.abs(box.left + box.width / 2 - middle);
      if (distance < nearest) [best, nearest] = [at, distance];
    }
    return best;
  }

  #box(position) {
    const span = this.#spans[position];
    // A token that wraps counts where it begins.
    return span?.getClientRects()[0] ?? null;
  }

  /** A token of which only its bytes are known, with the character that it shows together with its neighbours. */
  whole(position) {
    for (let at = position; this.#joined.has(at); at -= 1) {
      const text = this.#joined.get(at);
      if (text) return { ...this.#tokens[position], becomes: text };
      if (text === undefined) break;
    }
    return null;
  }

  /** The text of some tokens as it is shown. */
  text(from, to) {
    return this.#spans.slice(from, to).map((span) => span.textContent).join("");
  }

  /**
   * The next token (in `way`) the model was unsure of: one that is tinted, or would be by the rarest tenth. `here`: the
   * selected one counts.
   */
  doubtful(way, here = false) {
    const from = this.selected ?? (way > 0 ? -1 : this.length);
    for (let at = from + (here ? 0 : way); at >= 0 && at < this.length; at += way) {
      const { p } = this.#tokens[at];
      if (p !== null && !this.#anchors.has(at) && (this.#tint === "probability" ? p < 0.7 : p <= this.#rare[0])) return at;
    }
    return null;
  }
}

/** A small picture of a token, for lists: there even the space before a word is a character that can be seen. */
export function chip(token, extra = "") {
  const element = make("span", { class: `chip ${token.special ? "special" : ""} ${extra}` });
  // Bytes that are part of a character: what they would become, and what they are.
  if (token.becomes !== undefined) {
    const text = token.becomes.replace(/^ /, "·").replace(/\s/gu, "·");
    element.append(text, make("i", {}, ` ${bytes(token.hex)}`));
    return element;
  }
  const spaced = /^ \S/.test(token.text) && !token.hex && !token.special;
  fill(element, spaced ? { ...token, text: token.text.slice(1) } : token, undefined, true);
  if (spaced) element.prepend(make("i", {}, "·"));
  return element;
}
