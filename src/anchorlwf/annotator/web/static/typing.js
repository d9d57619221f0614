// When somebody typed last. A field may close while its text is still being typed: what follows on its heels is no
// shortcut, however much its letters look like one.

import { isField } from "./dom.js";

/** Milliseconds after a key of a text within which the next one belongs to the same text. */
const HEELS = 300;
const TEXT = /^(.|Enter|Backspace|Delete)$/u;
let last = -Infinity;

document.addEventListener("keydown", (event) => {
  const combined = event.altKey || event.ctrlKey || event.metaKey;
  if (isField(event.target) && TEXT.test(event.key) && !combined) last = event.timeStamp;
}, { capture: true });

/** This key was the last one of a text, or as good as that. */
export function typed(event) {
  last = event.timeStamp;
}

/** Whether this key goes on with a text whose field has closed; then the one after it may, too. */
export function goesOn(event) {
  const found = event.timeStamp - last < HEELS;
  if (found) last = event.timeStamp;
  return found;
}
