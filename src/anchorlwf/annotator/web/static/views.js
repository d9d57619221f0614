// The other two views of an answer: what changed, and base against tuned model.

import { get, post } from "./api.js";
import { make, tell } from "./dom.js";
import { fill, heat, plain } from "./tokens.js";

/** The first answer against the present one. */
export async function showChanges(root, session) {
  const { original, corrected, parts } = await get(`/api/sessions/${session}/diff`);
  const text = make("div", { class: "diff prose" });
  let changed = 0;
  for (const { op, original: [a, b], corrected: [c, d] } of parts) {
    if (op === "equal") {
      text.append(plain(corrected.slice(c, d)));
      continue;
    }
    changed += 1;
    if (b > a) text.append(make("del", {}, visible(original.slice(a, b))));
    if (d > c) text.append(make("ins", {}, visible(corrected.slice(c, d))));
  }
  const summary = changed === 0 ? "Nothing differs from the model's first answer."
    : `${changed} ${changed === 1 ? "place differs" : "places differ"} from the model's first answer.`;
  root.replaceChildren(make("p", { class: "quiet" }, summary), text);
}

/** A change of nothing but white space must be seen too. */
function visible(tokens) {
  const text = plain(tokens);
  return text.trim() === "" ? text.replace(/ /g, "·").replace(/\n/g, "⏎\n") : text;
}

function column(name, tokens) {
  const body = make("div", { class: "compared" });
  const strip = make("div", { class: "strip" });
  const spans = tokens.map((token) => {
    const span = make("span", { class: `t h${heat(token.kl)} ${token.special ? "special" : ""}` });
    span.title = `KL ${token.kl.toFixed(3)} nats`;
    fill(span, token);
    strip.append(make("i", { class: `h${heat(token.kl)}` }));
    return span;
  });
  body.append(...spans);
  const kls = tokens.map((token) => token.kl);
  const sum = kls.reduce((total, kl) => total + kl, 0);
  const top = kls.indexOf(Math.max(...kls, 0));
  const mean = (sum / kls.length).toFixed(3);
  const facts = tokens.length === 0 ? "no tokens"
    : `${tokens.length} tokens, KL ${mean} nats a token, most ${kls[top].toFixed(2)} at token ${top}`;
  // A picture with its content said in words; pointing at it shows the place in the text below.
  strip.setAttribute("role", "img");
  strip.setAttribute("aria-label", `KL per token of ${name}: ${facts}`);
  const at = (event) => {
    const box = strip.getBoundingClientRect();
    return spans[Math.min(spans.length - 1, Math.floor(((event.clientX - box.left) / box.width) * spans.length))];
  };
  strip.addEventListener("pointermove", (event) => {
    body.querySelector(".on")?.classList.remove("on");
    at(event)?.classList.add("on");
  });
  strip.addEventListener("click", (event) => at(event)?.scrollIntoView({ block: "center" }));
  return make("section", { class: "column", "aria-label": name }, make("h2", { class: "role" }, name),
    make("p", { class: "quiet" }, facts), strip, body);
}

/** Base and tuned model on this prompt, side by side. */
export async function showCompare(root, session) {
  const waiting = make("p", { class: "quiet", role: "status" }, "Both models are answering…");
  root.replaceChildren(waiting);
  const { base, tuned } = await post("/api/compare", { session });
  root.replaceChildren(make("div", { class: "columns" }, column("Base model", base), column("Tuned model", tuned)));
}

/** The tabs above the answer. `shown(name)` after a change; a failing view says so in its place. */
export class Tabs {
  #names = ["answer", "changes", "compare"];
  #work;
  #shown;
  current = "answer";

  constructor(work, shown) {
    this.#work = work;
    this.#shown = shown;
    const list = document.querySelector("[role=tablist]");
    list.addEventListener("click", (event) => {
      const tab = event.target.closest("[role=tab]");
      if (tab) this.go(tab.id.slice(4));
    });
    list.addEventListener("keydown", (event) => {
      const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!way) return;
      const names = this.#names.filter((name) => !this.#tab(name).hidden);
      this.go(names.at((names.indexOf(this.current) + way) % names.length));
      this.#tab(this.current).focus();
      event.preventDefault();
      event.stopPropagation();
    });
  }

  #tab(name) {
    return document.getElementById(`tab-${name}`);
  }

  allowCompare(allowed) {
    this.#tab("compare").hidden = !allowed;
  }

  async go(name) {
    if (this.#tab(name).hidden) return;
    this.current = name;
    for (const each of this.#names) {
      const on = each === name;
      this.#tab(each).setAttribute("aria-selected", String(on));
      this.#tab(each).tabIndex = on ? 0 : -1;
      document.getElementById(`view-${each}`).hidden = !on;
    }
    this.#shown(name);
    await this.refresh();
  }

  async refresh() {
    const fill = { changes: showChanges, compare: showCompare }[this.current];
    if (!fill || !this.#work.session) return;
    const root = document.getElementById(`view-${this.current}`);
    try {
      await fill(root, this.#work.session.id);
    } catch (error) {
      const trouble = make("p", { class: "trouble", role: "alert" });
      tell(trouble, error.message);
      root.replaceChildren(trouble);
    }
  }
}
