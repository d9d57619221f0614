// Where the tokens of an answer live: blocks of lines that the browser lays out, or skips, one by one.
// A thinking part is a fold of blocks of its own.

import { make } from "./dom.js";

/** A block takes no more lines from this many tokens on; small enough to lay out in a moment, few enough to scroll. */
const FULL = 100;
const OPENING = /<think(ing)?>$/;
const CLOSING = /<\/think(ing)?>$/;
const LONGEST_TAG = 12;

export class Blocks {
  #root;
  #blocks = [];
  #fold = null;
  #closing = false;
  #tail = "";

  constructor(root) {
    this.#root = root;
  }

  /** Put a token's element at the end. */
  add(span, token) {
    let last = this.#blocks.at(-1);
    if (!last || last.full) last = this.#newBlock();
    span.block = last;
    last.element.append(span);
    last.count += 1;
    // Only a line's end may end a block: within a line the text must flow on.
    if (last.count >= FULL && token.text.endsWith("\n")) last.full = true;
    this.#lookForThinking(token);
  }

  /** Remove elements from the end until `count` are left; `tokens` are those that stay. */
  cut(spans, count, tokens) {
    const gone = spans.splice(count);
    const { block } = gone[0];
    while (this.#blocks.at(-1) !== block) this.#drop(this.#blocks.at(-1));
    // In one go: thousands of single removals would be noticed.
    const range = document.createRange();
    range.setStartBefore(gone[0]);
    range.setEndAfter(block.element.lastChild);
    block.count -= range.extractContents().childElementCount;
    block.full = false;
    if (block.count === 0) this.#drop(block);
    this.#fold = this.#blocks.at(-1)?.fold ?? null;
    this.#tail = "";
    this.#closing = false;
    for (const token of tokens.slice(Math.max(0, count - LONGEST_TAG), count)) this.#grow(token);
    if (this.#fold && CLOSING.test(this.#tail)) this.#closeFold();
    this.#count(this.#blocks.at(-1)?.fold);
  }

  #drop(block) {
    this.#blocks.splice(this.#blocks.indexOf(block), 1);
    block.element.remove();
    if (block.fold && !block.fold.body.hasChildNodes()) block.fold.element.remove();
  }

  #newBlock() {
    if (this.#closing) {
      this.#fold = null;
      this.#closing = false;
    }
    const block = { element: make("div", { class: "block" }), count: 0, full: false, fold: this.#fold };
    (this.#fold?.body ?? this.#root).append(block.element);
    this.#blocks.push(block);
    return block;
  }

  #grow(token) {
    this.#tail = (this.#tail + token.text).slice(-2 * LONGEST_TAG).trimEnd();
  }

  #lookForThinking(token) {
    this.#grow(token);
    if (!this.#fold && OPENING.test(this.#tail)) this.#openFold();
    else if (this.#fold && CLOSING.test(this.#tail)) this.#closeFold();
    if (this.#fold) this.#count(this.#fold);
  }

  /** The tag may be one token or several; its first one begins the fold. */
  #openFold() {
    const block = this.#blocks.at(-1);
    const spans = [...block.element.children];
    let text = "";
    let first = spans.length;
    while (first > 0 && !/<think(ing)?>\s*$/.test(text)) {
      first -= 1;
      text = spans[first].textContent + text;
    }
    const button = make("button", { type: "button", class: "fold", "aria-expanded": "true" }, "Thinking");
    const body = make("div", { class: "fold-body" });
    const fold = { element: make("div", { class: "thinking" }, button, body), button, body };
    button.addEventListener("click", () => setFold(fold, body.hidden));
    this.#root.append(fold.element);
    this.#fold = fold;
    block.full = true;
    const inside = this.#newBlock();
    for (const span of spans.slice(first)) {
      inside.element.append(span);
      span.block = inside;
      inside.count += 1;
      block.count -= 1;
    }
    if (block.count === 0) this.#drop(block);
  }

  #closeFold() {
    this.#closing = true;
    this.#blocks.at(-1).full = true;
  }

  #count(fold) {
    if (!fold) return;
    const total = this.#blocks.reduce((sum, block) => sum + (block.fold === fold ? block.count : 0), 0);
    fold.button.textContent = `Thinking · ${total} tokens`;
  }
}

function setFold(fold, open) {
  fold.body.hidden = !open;
  fold.button.setAttribute("aria-expanded", String(open));
}

/** Unfold whatever hides this element. */
export function reveal(span) {
  if (span.block.fold?.body.hidden) setFold(span.block.fold, true);
}
