// Small helpers around the DOM. Nothing here takes markup: text goes in as text nodes only.

export const $ = (id) => document.getElementById(id);

/** An element with properties (`class`, `data-x`, `aria-x`, or any DOM property) and children (strings or nodes). */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Show or hide `element`; with a message, that is what it says. */
export function tell(element, message) {
  element.textContent = message ?? "";
  element.hidden = !message;
}

/** Say something to screen readers that the eye has seen already. */
export function speak(text) {
  $("spoken").textContent = text;
}

export const percent = (p) => {
  if (p === null || p === undefined) return "";
  if (p > 0 && p < 0.001) return "< 0.1 %";
  // 99.96 % is not certain: do not round it up to 100.
  const value = p < 1 ? Math.min(p * 100, 99.9) : 100;
  return `${value >= 10 && value <= 99 ? value.toFixed(0) : value.toFixed(1).replace(".0", "")} %`;
};

export const minutes = (seconds) => {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
};

/** True where single keys would be typed into a field. */
export const isField = (element) => element.matches("input, textarea, select, [contenteditable]");
