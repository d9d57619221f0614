// Files into the project: prompts, records, lawftrack's data sets; and what came of it.

import { post } from "./api.js";
import { closeButton, closeOutside } from "./dialogs.js";
import { make, speak, tell } from "./dom.js";

const FORMS = { prompts: "Prompts (JSONL)", records: "Records (JSONL)", lawftrack: "lawftrack data set" };
const SPANS = { first: "only its first token", whole: "every token of it" };

/** What a file most probably is, by how it begins. */
function guess(text) {
  const start = text.slice(0, 20_000);
  if (/"schema_version"/.test(start)) return "records";
  if (/"(tasks|gold_completion|anchor_token_indices)"/.test(start)) return "lawftrack";
  if (/"completion_ids"/.test(start)) return "records";
  return /"(samples|anchors|edits|completion)"/.test(start) ? "lawftrack" : "prompts";
}

const choice = (id, names) => make("select", { id },
  ...Object.entries(names).map(([value, text]) => make("option", { value }, text)));

const count = (number, one, many) => `${number} ${number === 1 ? one : many}`;

/** "Sample 3, anchor 1: ..." - anchors are counted from 0 in the reply, from 1 by people. */
const flaw = ({ sample, anchor, reason }) => make("li", { dir: "auto" },
  `Sample ${sample}${anchor === null ? "" : `, anchor ${anchor + 1}`}: ${reason}`);

export class Imports {
  #dialog;
  #added;

  /** `added()` when something new is in the queue. */
  constructor(dialog, added) {
    this.#dialog = dialog;
    this.#added = added;
    this.file = make("input", { type: "file", id: "import-file", accept: ".json,.jsonl,.ndjson,.txt" });
    this.form = choice("import-form", FORMS);
    this.span = choice("import-span", SPANS);
    this.spanLine = make("p", { hidden: true },
      make("label", { for: "import-span" }, "Where a correction has several tokens, anchors are "), this.span);
    this.go = make("button", { type: "button", class: "primary", disabled: true }, "Import");
    this.trouble = make("p", { class: "trouble", role: "alert", hidden: true });
    this.said = make("p", { role: "status" });
    this.flaws = make("ol", { class: "flaws", tabIndex: 0, role: "region", ariaLabel: "Flagged", hidden: true });
    this.file.addEventListener("change", () => this.#chosen());
    this.form.addEventListener("change", () => this.#showSpan());
    this.go.addEventListener("click", () => this.#take());
    dialog.append(
      make("div", { class: "dialog-head" }, make("h2", { id: "import-title" }, "Import"), closeButton(dialog)),
      make("p", {}, make("label", { for: "import-file" }, "File "), this.file),
      make("p", {}, make("label", { for: "import-form" }, "It holds "), this.form),
      this.spanLine, make("p", {}, this.go), this.trouble, this.said, this.flaws,
    );
    closeOutside(dialog);
  }

  open() {
    this.#dialog.showModal();
    this.file.focus();
  }

  #showSpan() {
    this.spanLine.hidden = this.form.value !== "lawftrack";
  }

  #clear() {
    tell(this.trouble, null);
    this.said.textContent = "";
    this.flaws.hidden = true;
    this.flaws.replaceChildren();
  }

  async #chosen() {
    this.#clear();
    const [file] = this.file.files;
    this.go.disabled = !file;
    if (!file) return;
    this.form.value = guess(await file.slice(0, 20_000).text());
    this.#showSpan();
  }

  async #take() {
    const [file] = this.file.files;
    this.#clear();
    this.go.disabled = true;
    this.said.textContent = "Importing…";
    try {
      const body = { format: this.form.value, content: await file.text(), span: this.span.value };
      this.#show(await post("/api/import", body));
    } catch (error) {
      this.said.textContent = "";
      tell(this.trouble, error.message ?? String(error));
    }
    this.go.disabled = false;
  }

  #show({ added, known, flagged }) {
    const lines = [`${count(added, "item", "items")} imported`];
    if (known > 0) lines.push(`${known} there already`);
    if (flagged.length > 0) lines.push(`${count(flagged.length, "place", "places")} to be checked`);
    this.said.textContent = `${lines.join(", ")}.`;
    this.flaws.replaceChildren(...flagged.map(flaw));
    this.flaws.hidden = flagged.length === 0;
    speak(this.said.textContent);
    if (added > 0) this.#added();
  }
}
