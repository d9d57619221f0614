// The page: brings the parts together, and carries out what people decide.

import { Answer } from "./answer.js";
import { get } from "./api.js";
import { Clock } from "./clock.js";
import { commands, listen } from "./commands.js";
import { Connection } from "./connection.js";
import { Cursor } from "./cursor.js";
import { Help, Palette } from "./dialogs.js";
import { $, percent, speak, tell } from "./dom.js";
import { Imports } from "./imports.js";
import { Notes } from "./notes.js";
import { Picker } from "./picker.js";
import { Queue, showProgress } from "./queue.js";
import { Screen } from "./screen.js";
import { Theme } from "./theme.js";
import { plain } from "./tokens.js";
import { Training } from "./train.js";
import { VERDICTS } from "./verdicts.js";
import { Tabs } from "./views.js";
import { Work } from "./work.js";

/** Confidences that [ and ] go through. */
const STEPS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1];
const TOAST = 7000;

class Page {
  me = { compare: false, alternatives: 10 };
  before = null;
  singleKeys = localStorage.getItem("single-keys") !== "off";
  #deciding = false;
  #toastTimer = 0;

  constructor() {
    this.connection = new Connection();
    this.work = new Work(this.connection, () => (localStorage.getItem("pause") === "off" ? null : this.screen.tokens));
    this.theme = new Theme();
    this.answer = new Answer($("answer"));
    this.notes = new Notes(this.work, () => this.cursor.focusToken());
    this.clock = new Clock(this.work);
    this.queue = new Queue($("queue-dialog"), (item) => this.#open(() => this.work.openItem(item)));
    this.imports = new Imports($("import-dialog"), () => this.#arrived());
    this.training = new Training($("train-dialog"), $("open-train"), this.work);
    this.tabs = new Tabs(this.work, (name) => { if (name !== "answer") this.cursor.close(); });
    this.picker = new Picker($("picker"), {
      choose: (position, body, shown) => this.correct(position, body, shown),
      close: () => this.cursor.focusToken(),
      move: (key) => this.cursor.move(key),
      confidence: (way) => this.weigh(way),
    });
    this.cursor = new Cursor(this);
    this.screen = new Screen(this);
    const list = commands(this);
    this.palette = new Palette($("palette-dialog"), list);
    this.help = new Help($("help-dialog"), list, { on: this.singleKeys, set: (on) => this.#setSingleKeys(on) });
    listen(this, list);
    this.#buttons();
    this.#showMarks(localStorage.getItem("marks") === "on");
    this.#showTint();
  }

  /** Find out who and what this is, and show the session of the address, or the next one. */
  async begin() {
    await this.connection.healed();
    this.me = await get("/api/me");
    $("project").textContent = this.me.project;
    $("project").title = `${this.me.model}, as ${this.me.annotator}`;
    document.title = `${this.me.project} · anchorlwf`;
    this.tabs.allowCompare(this.me.compare);
    const asked = /^#session=(\d+)$/.exec(window.location.hash);
    try {
      if (asked) await this.work.load(Number(asked[1]));
      else await this.next();
    } catch {
      await this.next(); // a session of somebody else's, or of a store that is gone
    }
  }

  #buttons() {
    const clicks = {
      "open-queue": () => this.queue.open(), "open-palette": () => this.palette.open(),
      "open-help": () => this.help.open(), "toggle-theme": () => this.theme.toggle(),
      "do-undo": () => this.undo(), "do-redo": () => this.redo(), "do-skip": () => this.decide("skip"),
      "do-reject": () => this.decide("reject"), "do-accept": () => this.decide("accept"),
      "stream-button": () => (this.work.following ? this.step("stop") : this.goOn()),
      "stream-end": () => this.endHere(this.work.following ? this.answer.selected : this.answer.length - 1),
      "unlock": () => this.undo(),
    };
    for (const [id, go] of Object.entries(clicks)) $(id).addEventListener("click", go);
    $("skip-link").addEventListener("click", (event) => {
      event.preventDefault(); // the address names the session
      this.cursor.focusToken();
    });
    $("tint").addEventListener("change", () => {
      localStorage.setItem("tint", $("tint").value);
      this.#showTint();
      this.cursor.focusToken();
    });
  }

  // --- Steps ---

  /** Put something at a position: `body` is what the server is told, `shown.text` what stands there meanwhile. */
  async correct(position, body, shown) {
    const { node } = this.work.session;
    this.answer.expect(position, shown.text);
    this.picker.close();
    try {
      await this.work.step("correct", { node, position, ...body, stream: true, pause: this.work.pause() });
      localStorage.setItem("corrected", "yes");
      this.answer.settle(position);
      this.picker.alternatives.forget();
      this.answer.select(position);
      this.cursor.focusToken();
      this.screen.showWhere();
      speak(this.work.session.ended ? "Corrected. The answer ends there." : "Corrected. The model goes on.");
    } catch (error) {
      this.answer.settle(position);
      if (position < this.answer.length) {
        this.cursor.select(position);
        this.picker.fail(error.message, body.text);
      } else {
        tell($("action-trouble"), error.message);
      }
    }
  }

  /** Let the answer end behind a token; behind the whole correction where the one just made has put it there. */
  async endHere(position = this.answer.selected) {
    const { node, nodes, tokens } = this.work.session;
    if (position === null || !tokens[position]) return;
    const { parent, position: first, given_tokens: given } = nodes[node];
    const within = parent !== null && position >= first && position < first + given;
    const last = within ? first + given - 1 : position;
    if (tokens[last].special && last === tokens.length - 1 && this.work.session.ended) {
      this.toast("The answer ends there already.");
    } else if (last + 1 < tokens.length) {
      await this.correct(last + 1, { text: "", end: true }, { text: "⏹" });
    } else {
      // Nothing stands behind it yet: it is put there once more, and the end with it.
      const from = within ? first : position;
      const ids = tokens.slice(from, last + 1).map((token) => token.id);
      await this.correct(from, { token_ids: ids, end: true }, { text: this.answer.text(from, last + 1) });
    }
  }

  /** The answer goes on where it was stopped, has paused, or was cut. */
  async goOn() {
    if (this.work.session.truncated) await this.step("extend");
    else await this.work.goOn();
  }

  sayDecided() {
    this.toast(this.screen.decided, "Change it", () => this.undo());
  }

  /** A step whose trouble is told beside the buttons. Returns whether it was done. */
  async step(name, body = {}) {
    if (!this.work.session) return false;
    tell($("action-trouble"), null);
    try {
      await this.work.step(name, body);
      if (["undo", "redo", "move"].includes(name)) this.picker.alternatives.forget();
      return true;
    } catch (error) {
      tell($("action-trouble"), error.message);
      return false;
    }
  }

  /** Whether there is something to undo is asked when its turn comes: keys may be quicker than replies. */
  undo() {
    return this.step("undo", () => (this.work.canUndo ? {} : null));
  }

  redo() {
    return this.step("redo", () => (this.work.canRedo ? {} : null));
  }

  /** More (1) or less (-1) confidence in the selected anchor, or in the last one where no token is selected. */
  async weigh(way) {
    const { selected } = this.answer;
    const anchor = this.work.anchorAt(selected) ?? this.work.session.anchors.at(-1);
    if (!anchor) {
      this.toast("Confidence belongs to an anchor: correct a token first.");
      return;
    }
    const { position } = anchor;
    // From what it is when this step's turn comes: a key pressed three times goes three steps.
    const done = await this.step("confidence", () => {
      const now = this.work.anchorAt(position)?.confidence;
      const up = STEPS.find((step) => step > now + 1e-6);
      const confidence = way > 0 ? up : STEPS.findLast((step) => step < now - 1e-6);
      return confidence === undefined ? null : { position, confidence };
    });
    if (done) speak(`Confidence of the anchor at ${position}: ${percent(this.work.anchorAt(position)?.confidence)}`);
  }

  /** Accept (an untouched answer: keep), reject or skip, and on to the next item. */
  async decide(verdict) {
    // A second press must not decide on an item that nobody has seen yet.
    if (!this.work.open || this.#deciding) return;
    this.#deciding = true;
    const { id } = this.work.session;
    await this.notes.flush();
    const said = verdict === "accept" && this.screen.untouched ? "keep" : verdict;
    if (await this.step("decide", { verdict: said })) {
      this.before = id;
      this.toast(`${VERDICTS[said]}.`, "Back to it", () => this.back());
      await this.next();
    }
    this.#deciding = false;
  }

  /** To the item decided last. */
  async back() {
    const id = this.before;
    this.before = null;
    await this.#open(() => this.work.load(id));
  }

  /** The next item of the queue. */
  next() {
    return this.#open(() => this.work.next(this.queue.order.value));
  }

  /** There is something new in the queue: whoever had finished it goes on. */
  async #arrived() {
    showProgress(await get("/api/progress"));
    if (this.work.session === null) await this.next();
  }

  async #open(how) {
    await this.notes.flush();
    try {
      await how();
    } catch (error) {
      this.toast(error.message);
    }
  }

  // --- The rest ---

  toast(text, button = null, go = () => {}) {
    $("toast-text").textContent = text;
    $("toast-button").hidden = button === null;
    $("toast-button").textContent = button ?? "";
    $("toast-button").onclick = () => {
      $("toast").hidden = true;
      go();
    };
    $("toast").hidden = false;
    clearTimeout(this.#toastTimer);
    this.#toastTimer = setTimeout(() => { $("toast").hidden = true; }, TOAST);
  }

  toggleTab(name) {
    this.tabs.go(this.tabs.current === name ? "answer" : name);
  }

  /** Open or close the prompt as the model sees it; the keys scroll it, and its own key leads back. */
  togglePrompt() {
    const fold = $("prompt").querySelector(".seen details");
    fold.open = !fold.open;
    if (!fold.open) {
      this.cursor.focusToken();
      return;
    }
    this.cursor.close();
    fold.querySelector(".rendered").focus({ preventScroll: true });
    fold.scrollIntoView({ block: "nearest" });
  }

  nextTint() {
    const { options, selectedIndex } = $("tint");
    localStorage.setItem("tint", options[(selectedIndex + 1) % options.length].value);
    this.#showTint();
    speak(`Tinted: ${$("tint").selectedOptions[0].text}`);
  }

  #showTint() {
    const { tint } = $("tint").dataset;
    $("tint").value = localStorage.getItem("tint") ?? tint;
    if ($("tint").value === "") $("tint").value = tint;
    this.answer.tint = $("tint").value;
    this.screen.showLegend();
  }

  togglePause() {
    const off = localStorage.getItem("pause") === "off";
    localStorage.setItem("pause", off ? "on" : "off");
    this.toast(off ? "Long continuations pause after a screen." : "Continuations go on to the end of the answer.");
  }

  focusNote() {
    $("note").closest("details").open = true;
    $("note").focus();
  }

  toggleMarks() {
    const on = !$("answer").classList.contains("marks");
    localStorage.setItem("marks", on ? "on" : "off");
    this.#showMarks(on);
  }

  #showMarks(on) {
    $("answer").classList.toggle("marks", on);
  }

  #setSingleKeys(on) {
    this.singleKeys = on;
    localStorage.setItem("single-keys", on ? "on" : "off");
  }

  async copy() {
    const text = plain(this.work.tokens.filter((token) => !token.special));
    try {
      await navigator.clipboard.writeText(text);
      this.toast("Copied.");
    } catch {
      this.toast("The browser does not let this page copy; mark the text in the view of changes instead.");
    }
  }
}

new Page().begin();
