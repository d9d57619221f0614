// The answer: one element per token, made once. Selecting touches two of them, a step only those that changed.

import { Blocks, reveal } from "./blocks.js";
import { make, percent } from "./dom.js";
import { fill, joinBytes, look, spoken } from "./tokens.js";

export class Answer {
  #root;
  #blocks;
  #spans = [];
  #tokens = [];
  #joined = new Map();
  #anchors = new Map();
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
    if (same < this.length) this.#cut(same);
    for (let at = same; at < tokens.length; at += 1) this.#add(tokens[at]);
    if (same < tokens.length) this.#refreshBytes(same, tokens.length);
    else this.#refreshBytes(same - 1, same);
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
  }

  #cut(count) {
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
    fill(span, token);
    this.#spans.push(span);
    this.#tokens.push(token);
    this.#blocks.add(span, token);
  }

  #dress(position, token) {
    this.#tokens[position] = token;
    const span = this.#spans[position];
    const kept = ["anchor", "on", "pending", "broken", "more"].filter((name) => span.classList.contains(name));
    span.className = [look(token), ...kept].join(" ");
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
    this.#anchors = wanted;
    if (this.selected !== null) this.#name(this.#spans[this.selected]);
  }

  /** Show at once what was chosen, while the server still thinks about it. */
  expect(position, text) {
    const span = this.#spans[position];
    if (!span) return;
    span.textContent = text;
    span.classList.add("pending");
  }

  /** Take `expect` back. */
  settle(position) {
    const span = this.#spans[position];
    if (!span?.classList.contains("pending")) return;
    span.classList.remove("pending");
    fill(span, this.#tokens[position], this.#joined.get(position));
  }

  select(position) {
    const before = this.#spans[this.selected];
    if (before) {
      before.classList.remove("on");
      for (const name of ["role", "tabindex", "aria-label", "aria-expanded", "aria-haspopup"]) {
        before.removeAttribute(name);
      }
    }
    this.selected = position !== null && position >= 0 && position < this.length ? position : null;
    const span = this.#spans[this.selected];
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

  /** The next token (in `way`) the model was unsure of. */
  doubtful(way) {
    const from = this.selected ?? (way > 0 ? -1 : this.length);
    for (let at = from + way; at >= 0 && at < this.length; at += way) {
      const { p } = this.#tokens[at];
      if (p !== null && p < 0.7) return at;
    }
    return null;
  }
}

/** A small picture of a token, for lists: there even the space before a word is a character that can be seen. */
export function chip(token, extra = "") {
  const element = make("span", { class: `chip ${token.special ? "special" : ""} ${extra}` });
  const spaced = /^ \S/.test(token.text) && !token.hex && !token.special;
  fill(element, spaced ? { ...token, text: token.text.slice(1) } : token, undefined, true);
  if (spaced) element.prepend(make("i", {}, "·"));
  return element;
}
