// Command search and help. Dialogs are the browser's own: focus stays inside, Escape closes, focus goes back.

import { make } from "./dom.js";

const PATHS = [
  ["Click, ← → ↑ ↓", "go to a token; its alternatives open"],
  ["1 … 9, 0", "take that alternative; in the field, and where the alternatives are numbers, with Alt"],
  ["Enter", "open the field; again: correct"],
  ["Type", "in the field: any text, of any number of tokens; Shift Enter for a line break"],
  ["Ctrl Enter", "in the field: correct, and end the answer there"],
  ["Home, End", "first and last token"],
  ["Esc", "close the alternatives; then stop the continuation; then back to the token"],
];

export function closeButton(dialog) {
  const button = make("button", { type: "button", class: "plain icon", ariaLabel: "Close" }, "✕");
  button.addEventListener("click", () => dialog.close());
  return button;
}

/** A click beside a dialog closes it. */
export function closeOutside(dialog) {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}

export class Palette {
  #dialog;
  #list;
  #found = [];
  #lit = 0;

  constructor(dialog, list) {
    this.#dialog = dialog;
    this.#list = list;
    this.field = make("input", {
      type: "text", role: "combobox", "aria-label": "Search commands", "aria-controls": "palette-list",
      "aria-expanded": "true", autocomplete: "off", placeholder: "What do you want to do?",
    });
    this.results = make("ul", { id: "palette-list", role: "listbox", "aria-label": "Commands" });
    dialog.append(make("div", { class: "palette" }, this.field, this.results));
    closeOutside(dialog);
    this.field.addEventListener("input", () => this.#search());
    this.field.addEventListener("keydown", (event) => this.#key(event));
    this.results.addEventListener("click", (event) => {
      const at = event.target.closest("li")?.at;
      if (at !== undefined) this.#run(at);
    });
  }

  open() {
    this.field.value = "";
    this.#search();
    this.#dialog.showModal();
  }

  #search() {
    const words = this.field.value.toLowerCase().split(/\s+/);
    const fits = (name) => words.every((word) => name.toLowerCase().includes(word));
    this.#found = this.#list.filter(({ name, hidden, can }) => !hidden && fits(name) && can());
    this.results.replaceChildren(...this.#found.map(({ name, key }, at) => {
      const keys = key ? [make("kbd", {}, key)] : [];
      const item = make("li", { id: `command-${at}`, role: "option" }, make("span", {}, name), ...keys);
      item.at = at;
      return item;
    }));
    if (this.#found.length === 0) {
      const nothing = { id: "command-0", class: "quiet", role: "option", "aria-disabled": "true" };
      this.results.append(make("li", nothing, "No such command."));
    }
    this.#light(0);
  }

  #light(at) {
    this.#lit = Math.max(0, Math.min(this.#found.length - 1, at));
    for (const item of this.results.children) item.setAttribute("aria-selected", String(item.at === this.#lit));
    this.field.setAttribute("aria-activedescendant", `command-${this.#lit}`);
    this.results.children[this.#lit]?.scrollIntoView({ block: "nearest" });
  }

  #key(event) {
    if (event.isComposing) return;
    if (event.key === "ArrowDown") this.#light(this.#lit + 1);
    else if (event.key === "ArrowUp") this.#light(this.#lit - 1);
    else if (event.key === "Enter") this.#run(this.#lit);
    else return;
    event.preventDefault();
  }

  #run(at) {
    const command = this.#found[at];
    if (!command) return;
    this.#dialog.close();
    command.go();
  }
}

export class Help {
  #dialog;

  /** `keys`: {on, set(bool)} - single keys can be switched off, for those who dictate. */
  constructor(dialog, list, keys) {
    this.#dialog = dialog;
    const row = ([key, what]) => make("div", { class: "key-row" },
      make("dt", {}, make("kbd", {}, key)), make("dd", {}, what));
    const rest = list.filter(({ key, hidden }) => key && !hidden).map(({ key, name }) => [key, name]);
    const box = make("input", { type: "checkbox", id: "single-keys", checked: keys.on });
    box.addEventListener("change", () => keys.set(box.checked));
    dialog.append(
      make("div", { class: "dialog-head" }, make("h2", { id: "help-title" }, "Keys"), closeButton(dialog)),
      make("div", { class: "help", tabIndex: 0, role: "region", ariaLabel: "Keys" },
        make("p", {}, "Find the first wrong token, put the right one there, and let the model go on. "
          + "A token you corrected is an anchor; the others you keep."),
        make("dl", {}, ...PATHS.map(row)), make("dl", { class: "two" }, ...rest.map(row))),
      make("label", { class: "check", for: "single-keys" }, box, " Single keys do things outside of fields"),
    );
    closeOutside(dialog);
  }

  open() {
    this.#dialog.showModal();
  }
}
