// From the page to the model: begin a training, watch it, read its report, and ask base and tuned model.

import { get, post, Problem } from "./api.js";
import { closeButton, closeOutside } from "./dialogs.js";
import { make, minutes, tell } from "./dom.js";
import { plain } from "./tokens.js";

/** Milliseconds between two looks at what others have begun: while the dialog is open, and while it is not. */
const OPEN = 5000;
const CLOSED = 60_000;

const KEEPS = {
  none: ["The accepted answers only", "Quick. What changes elsewhere is not measured."],
  auto: ["Also what the model says elsewhere",
    "The model writes prompts itself first, which takes a while; a quarter of them measures the drift."],
};

const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;
const answers = ({ corrections, kept }) => `${count(corrections, "corrected answer")} and ${kept} unchanged`;
const active = (run) => run !== null && (run.state === "running" || run.state === "stopping");
const clock = (at) => new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
const day = (at) => new Date(at).toLocaleDateString([], { day: "numeric", month: "short" });
const nats = (value) => `${value.toFixed(value < 0.01 ? 5 : 3)} nats a token`;

/** What became of a training, in a sentence. */
function outcome(run) {
  const step = run.row ? ` after step ${run.row.step}` : " before its first step";
  switch (run.state) {
    case "running": return `${run.by} trains on ${answers(run)}, since ${clock(run.began)}.`;
    case "stopping": return `${run.stopped_by || "The server"} ends it; the step at hand is finished first.`;
    case "converged": return "Trained: every anchor holds.";
    case "not_converged": return "Trained, but not everything was reached.";
    case "stopped": return `${run.stopped_by ? `${run.stopped_by} stopped it` : "It ended with the server"}${step}.`;
    case "failed": return `It failed${step}.`;
    default: return `It ended${step}, together with the server or the machine.`;
  }
}

const row = (name, ...values) => [make("dt", {}, name), ...values.map((value) => make("dd", {}, value))];

/** The report of a training that has come to its end. */
function report({ result, folder }) {
  const { report: found, steps, seconds, missing } = result;
  const drifts = Object.entries(found.held_out).map(([kind, { mean, low, high, records }]) => row(
    kind === "all" ? "Drift on held-out answers" : `of these, ${kind}`,
    `${nats(mean)} (95 %: ${low.toFixed(5)} to ${high.toFixed(5)}; ${count(records, "answer")})`,
  ));
  if (drifts.length === 0) drifts.push(row("Drift on held-out answers", "not measured: none were held out"));
  const list = make("dl", { class: "facts" },
    ...row("Anchors held", `${found.anchors_held} of ${found.anchors}`),
    ...row("Answers reproduced", `${found.records_reproduced} of ${found.records}`),
    ...row("Steps", `${steps}, in ${minutes(seconds)} minutes`), ...drifts.flat(),
    ...row("Drift on trained answers", nats(found.keep_kl)), ...row("Run folder", make("code", {}, folder)));
  const lacks = missing.map((lack) => make("li", {}, lack));
  return lacks.length === 0 ? [list] : [make("p", {}, "Missing:"), make("ul", { class: "lacks" }, ...lacks), list];
}

/** The server-sent events of a reply to POST, which EventSource cannot send. */
async function* events(path, body, signal) {
  const headers = { "content-type": "application/json" };
  let reply;
  try {
    reply = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  } catch {
    throw new Problem("Unreachable", "The server does not answer.", 0);
  }
  if (!reply.ok) {
    const { error } = await reply.json().catch(() => ({ error: null }));
    throw new Problem(error?.type ?? "Error", error?.message ?? `The server answered ${reply.status}.`, reply.status);
  }
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const found = /^event: (\w+)\ndata: (.*)$/m.exec(block);
      if (found) yield [found[1], JSON.parse(found[2])];
    }
  }
}

/** Where two lists of tokens differ: how many are the same at the beginning, and how many at the end. */
function shared(one, other) {
  const shorter = Math.min(one.length, other.length);
  let start = 0;
  while (start < shorter && one[start].id === other[start].id) start += 1;
  let end = 0;
  while (end < shorter - start && one.at(-1 - end).id === other.at(-1 - end).id) end += 1;
  return [start, end];
}

/** One prompt to both models. */
class Compare {
  #sides = { base: [], tuned: [] };
  #asking = null;
  #run = null;

  constructor() {
    this.text = make("textarea", { id: "train-prompt", rows: 2, dir: "auto", maxLength: 100_000 });
    this.go = make("button", { type: "button", class: "small" }, "Ask both");
    this.said = make("p", { class: "quiet", role: "status" });
    this.trouble = make("p", { class: "trouble", role: "alert", hidden: true });
    this.columns = {};
    const columns = Object.entries({ base: "Base model", tuned: "Tuned model" }).map(([side, name]) => {
      this.columns[side] = make("div", { class: "compared", dir: "auto" });
      return make("section", { class: "column", "aria-label": name }, make("h3", { class: "role" }, name),
        this.columns[side]);
    });
    this.both = make("div", { class: "columns", hidden: true }, ...columns);
    this.element = make("section", { class: "train-compare", hidden: true },
      make("label", { for: "train-prompt" }, "Ask base and tuned model"), this.text,
      make("p", { class: "train-ask" }, this.go, this.said), this.trouble, this.both);
    this.go.addEventListener("click", () => this.#ask());
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#ask();
    });
  }

  /** Offer it for a training that has saved weights, and take back what was asked of another one. */
  show(run, prompt) {
    const number = run?.comparable ? run.number : null;
    this.element.hidden = number === null;
    if (number === this.#run) return;
    this.leave();
    this.#run = number;
    this.both.hidden = true;
    this.said.textContent = "";
    if (this.text.value === "") this.text.value = prompt;
  }

  /** Nobody looks any more. */
  leave() {
    this.#asking?.abort();
    this.#asking = null;
  }

  async #ask() {
    const text = this.text.value.trim();
    if (text === "" || this.#run === null) return;
    this.leave();
    const own = this.#asking = new AbortController();
    this.#sides = { base: [], tuned: [] };
    tell(this.trouble, null);
    this.both.hidden = false;
    this.said.textContent = "Both are answering…";
    this.#paint(false);
    this.both.scrollIntoView({ block: "nearest" });
    try {
      for await (const [name, data] of events(`/api/training/${this.#run}/compare`, { text }, own.signal)) {
        if (this.#asking !== own) return;
        if (name === "tokens") this.#sides[data.side].push(...data.tokens);
        if (name === "failed") throw new Problem(data.error.type, data.error.message, 502);
        if (name === "done") this.said.textContent = data.same ? "Both answer the same." : "What differs is marked.";
        this.#paint(name === "done");
        this.both.scrollIntoView({ block: "nearest" });
      }
    } catch (error) {
      if (this.#asking !== own) return;
      this.said.textContent = "";
      tell(this.trouble, error.message);
    }
  }

  #paint(whole) {
    const { base, tuned } = this.#sides;
    const [start, end] = whole ? shared(base, tuned) : [Infinity, 0];
    for (const [side, tokens] of Object.entries(this.#sides)) {
      const said = (from, to) => plain(tokens.slice(from, to).filter((token) => !token.special));
      const differs = said(start, tokens.length - end);
      const mark = differs === "" ? [] : [make("mark", {}, differs)];
      this.columns[side].replaceChildren(said(0, start), ...mark, said(Math.max(start, tokens.length - end)));
    }
  }
}

export class Training {
  #dialog;
  #button;
  #work;
  #source = null;
  #looked = 0;
  #runs = null;

  constructor(dialog, button, work) {
    this.#dialog = dialog;
    this.#button = button;
    this.#work = work;
    this.facts = make("p", { class: "quiet" });
    this.trouble = make("p", { class: "trouble", role: "alert", hidden: true });
    this.choices = Object.entries(KEEPS).map(([value, [name, hint]]) => {
      const choice = make("input", { type: "radio", name: "train-retain", value });
      return make("label", { class: "choice" }, choice, make("span", {}, name, make("small", {}, hint)));
    });
    this.go = make("button", { type: "button", class: "primary", disabled: true }, "Train");
    this.form = make("form", { class: "train-form" },
      make("fieldset", {}, make("legend", {}, "What is to stay as it is"), ...this.choices), this.go);
    this.again = make("details", { open: true }, make("summary", { hidden: true }, "Train again"), this.form);
    this.state = make("p", { class: "train-state", role: "status" });
    this.bar = make("div", { class: "bar" });
    this.progress = make("div", { class: "progress", role: "progressbar", "aria-label": "Steps" }, this.bar);
    this.step = make("p", { class: "quiet" });
    this.stop = make("button", { type: "button", class: "small" }, "Stop");
    this.under = make("div", { class: "train-under" }, this.progress, this.step, this.stop);
    this.report = make("div", {});
    this.compare = new Compare();
    this.earlier = make("ul", { class: "train-earlier" });
    this.before = make("details", { hidden: true }, make("summary", {}, "Earlier trainings"), this.earlier);
    dialog.append(
      make("div", { class: "dialog-head" }, make("h2", { id: "train-title" }, "Train"), closeButton(dialog)),
      this.facts, this.trouble, this.state, this.under, this.report, this.compare.element, this.again, this.before,
    );
    this.#listen();
    this.#look();
    setInterval(() => this.#again(), 1000);
  }

  #listen() {
    closeOutside(this.#dialog);
    this.#button.addEventListener("click", () => this.open());
    this.#dialog.addEventListener("close", () => {
      this.#leave();
      this.compare.leave();
    });
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.go.addEventListener("click", () => {
      const retain = this.form.querySelector("input:checked").value;
      this.#do(() => post("/api/training", { retain }));
    });
    this.stop.addEventListener("click", () => this.#do(() => post("/api/training/stop")));
  }

  open() {
    this.#dialog.showModal();
    this.#look();
  }

  /** What others have begun meanwhile; a training that is watched tells by itself. */
  #again() {
    const pause = this.#dialog.open ? OPEN : CLOSED;
    const seen = document.visibilityState === "visible" && this.#source === null;
    if (seen && performance.now() - this.#looked > pause) this.#look();
  }

  async #look() {
    this.#looked = performance.now();
    let found;
    try {
      found = await get("/api/training");
    } catch (error) {
      if (this.#dialog.open) tell(this.trouble, error.message);
      return;
    }
    const { cannot, runs } = found;
    this.facts.textContent = cannot ?? `Accepted so far: ${answers(found)}. Training makes an adapter that gives the `
      + "corrected answers and changes all others as little as possible.";
    this.again.hidden = cannot !== null;
    if (runs.length !== this.#runs) this.again.open = runs.length === 0;
    this.#runs = runs.length;
    this.again.firstElementChild.hidden = runs.length === 0;
    this.go.disabled = found.corrections === 0;
    if (!this.form.querySelector("input:checked")) this.form.querySelector(`[value=${found.retain}]`).checked = true;
    this.before.hidden = runs.length < 2;
    this.earlier.replaceChildren(...runs.slice(1).map((run) => make("li", {},
      `${run.number}: ${run.by}, ${day(run.began)} ${clock(run.began)}, ${answers(run)}. ${outcome(run)}`)));
    this.#show(runs[0] ?? null);
  }

  /** A click: only one at a time, and what comes of it is shown. */
  async #do(request) {
    tell(this.trouble, null);
    this.go.disabled = this.stop.disabled = true;
    try {
      this.#show(await request());
    } catch (error) {
      tell(this.trouble, error.message);
    }
    this.stop.disabled = false;
    await this.#look();
  }

  #show(run) {
    const working = active(run);
    this.#button.classList.toggle("working", working);
    this.#button.title = working ? outcome(run) : "";
    if (!this.#dialog.open) return;
    if (working) this.again.hidden = true;
    const said = run === null ? "" : outcome(run);
    if (this.state.textContent !== said) this.state.textContent = said;
    this.under.hidden = !working;
    if (working) this.#showStep(run);
    const rest = !working && run !== null && run.result === null && run.said !== "";
    this.report.replaceChildren(...(run?.result && !working ? report(run) : []),
      ...(rest ? [make("p", { class: "quiet train-said", dir: "auto" }, run.said)] : []));
    this.compare.show(run, this.#asked());
    if (working) this.#follow();
  }

  #showStep({ row, said, state }) {
    const [step, most] = row ? [row.step, row.max_steps] : [0, 1];
    this.bar.style.width = `${(step / most) * 100}%`;
    for (const [name, value] of Object.entries({ valuemin: 0, valuemax: most, valuenow: step })) {
      this.progress.setAttribute(`aria-${name}`, String(value));
    }
    this.step.textContent = row === null ? said || "The model is being loaded…"
      : `Step ${step} (maximum ${most}). ${row.held} of ${row.anchors} anchors hold, ${row.reproduced} of `
        + `${row.records} answers are reproduced, drift ${nats(row.keep_kl)}.`;
    this.stop.textContent = state === "stopping" ? "End at once" : "Stop";
  }

  /** What the item on the screen asks: a prompt to begin with. */
  #asked() {
    const messages = this.#work.session?.prompt.messages ?? [];
    const last = messages.findLast(({ role }) => role === "user")?.content;
    return typeof last === "string" ? last : "";
  }

  #follow() {
    if (this.#source !== null) return;
    const source = this.#source = new EventSource("/api/training/stream");
    source.addEventListener("run", (event) => this.#show(JSON.parse(event.data)));
    const over = () => {
      this.#leave();
      this.#look();
    };
    source.addEventListener("done", over);
    source.addEventListener("error", () => {
      // The look after the pause says whether the server is there again, and follows anew.
      this.#leave();
      this.#looked = performance.now();
    });
  }

  #leave() {
    this.#source?.close();
    this.#source = null;
  }
}
