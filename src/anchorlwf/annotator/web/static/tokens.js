// How a token looks: everything that prints nothing by itself gets a mark, and nothing can rearrange the page.

const FOLDED = { "\n": "⏎", "\t": "⇥", "\r": "␍" };
// Invisible or rearranging characters, which would hide in the text or turn it around; half a surrogate pair as well.
const HIDDEN = new RegExp("[\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f\\u007f-\\u009f\\u00a0\\u00ad\\u200b"
  + "\\u200e\\u200f\\u2028-\\u202f\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb]|\\p{Surrogate}", "u");
const PIECES = new RegExp(`([\\n\\t\\r]|${HIDDEN.source})`, "u");
const JOINERS = /^[\u200c\u200d\ufe0e\ufe0f]+$/;

const code = (char) => `U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

function mark(char) {
  if (char in FOLDED) return FOLDED[char];
  const point = char.codePointAt(0);
  if (point < 0x20) return String.fromCodePoint(0x2400 + point);
  return point === 0xa0 ? "⍽" : `‹${code(char)}›`;
}

/** Raw bytes, where they are no character. */
export const bytes = (hex) => `‹${hex.toUpperCase().replace(/..(?=.)/g, "$& ")}›`;

/**
 * The pieces of a token's text, as [text, is a mark]; `flat`: on one line. `joined`: what its bytes mean
 * together with its neighbours' ("" where an earlier token shows the character), see `joinBytes`.
 */
export function pieces(token, joined = undefined, flat = false) {
  if (token.hex !== undefined) {
    if (joined === undefined) return [[bytes(token.hex), true]];
    return joined === "" ? [["", false]] : pieces({ text: joined }, undefined, flat);
  }
  const { text } = token;
  if (text === "") return [[`‹${token.id}›`, true]];
  if (token.special) return [[text, false]];
  if (JOINERS.test(text)) return [[[...text].map((char) => `‹${code(char)}›`).join(""), true]];
  // A single space is drawn by the style sheet; several alone, or one behind something, would not be seen.
  if (text === " " && !flat) return [[text, false]];
  if (/^ +$/.test(text)) return [["·".repeat(text.length), true]];
  const trailing = /^(.*?\S)( +)$/s.exec(text);
  const body = trailing ? trailing[1] : text;
  const found = [];
  if (PIECES.test(body)) {
    for (const piece of body.split(PIECES)) {
      if (piece === "") continue;
      if (!PIECES.test(piece)) found.push([piece, false]);
      else {
        found.push([mark(piece), true]);
        // The line still breaks, and the tab still indents, behind the mark.
        if (!flat && (piece === "\n" || piece === "\t")) found.push([piece, false]);
      }
    }
  } else {
    found.push([body, false]);
  }
  if (trailing) found.push(["·".repeat(trailing[2].length), true]);
  return found;
}

/** Put a token's pieces into an element, as text nodes. */
export function fill(element, token, joined = undefined, flat = false) {
  const found = pieces(token, joined, flat);
  if (found.length === 1 && !found[0][1]) {
    element.textContent = found[0][0];
    return;
  }
  element.replaceChildren(...found.map(([text, isMark]) => {
    if (!isMark) return document.createTextNode(text);
    const sign = document.createElement("i");
    sign.textContent = text;
    return sign;
  }));
}

/** The classes a token wears, but for its tint. */
export function look(token) {
  const names = ["t"];
  if (token.special) names.push("special");
  if (token.hex !== undefined) names.push("bytes");
  // A single space, alone or before a word, is drawn as a faint dot by the style sheet.
  if (/^ (\S|$)/.test(token.text)) names.push("sp");
  return names.join(" ");
}

/** 0 (sure, or unknown) to 6 (the model all but ruled it out), even in log-probability. */
export function level(p) {
  if (p === null || p === undefined || p >= 0.9) return 0;
  const bounds = [0.7, 0.5, 0.3, 0.15, 0.05];
  const found = bounds.findIndex((bound) => p >= bound);
  return found < 0 ? 6 : found + 1;
}

/** 0 to 6 for a divergence in nats. */
export function heat(kl) {
  const bounds = [0.01, 0.05, 0.2, 0.5, 1, 3];
  const found = bounds.findIndex((bound) => kl < bound);
  return found < 0 ? 6 : found;
}

const NAMES = { "\n": "line break", "\t": "tab", "\r": "carriage return", " ": "space" };

/** What a screen reader says. */
export function spoken(token, joined) {
  if (token.hex !== undefined) {
    const part = `byte ${token.hex.replace(/..(?=.)/g, "$& ")}`;
    return joined ? `${joined}, ${part}` : part;
  }
  if (token.special) return `special token ${token.text}`;
  if (/^\s+$/.test(token.text)) return [...token.text].map((char) => NAMES[char] ?? code(char)).join(", ");
  return token.text.trim() || `token ${token.id}`;
}

/** Length of the UTF-8 character that this byte begins; 0 where it begins none. */
function width(byte) {
  if (byte < 0x80) return 1;
  if (byte >= 0xc2 && byte < 0xe0) return 2;
  if (byte >= 0xe0 && byte < 0xf0) return 3;
  return byte >= 0xf0 && byte < 0xf5 ? 4 : 0;
}

/**
 * What neighbouring byte tokens show: the whole character at the token where it begins, "" at those that only go on
 * with it, undefined where the bytes are no character.
 */
export function joinBytes(tokens) {
  const owners = [];
  const raw = [];
  tokens.forEach((token, index) => {
    for (let at = 0; at < token.hex.length; at += 2) {
      raw.push(parseInt(token.hex.slice(at, at + 2), 16));
      owners.push(index);
    }
  });
  const shown = tokens.map(() => "");
  const broken = new Set();
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  for (let at = 0; at < raw.length;) {
    const size = width(raw[at]);
    try {
      if (size === 0 || at + size > raw.length) throw new RangeError("no whole character");
      shown[owners[at]] += decoder.decode(new Uint8Array(raw.slice(at, at + size)));
      at += size;
    } catch {
      broken.add(owners[at]);
      at += 1;
    }
  }
  return shown.map((text, index) => (broken.has(index) ? undefined : text));
}

/** Plain text of a list of tokens, bytes joined. */
export function plain(tokens) {
  const encoder = new TextEncoder();
  const parts = tokens.map((token) => (token.hex === undefined
    ? encoder.encode(token.text)
    : Uint8Array.from(token.hex.match(/../g), (pair) => parseInt(pair, 16))));
  const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return new TextDecoder().decode(joined);
}
