// What is shown of the session around its tokens: prompt, buttons, stream line, side panel, the empty page.

import { get } from "./api.js";
import { $, make, minutes, percent, speak, tell } from "./dom.js";
import { showAnchors, showHistory } from "./history.js";
import { showPrompt } from "./prompt.js";
import { showProgress } from "./queue.js";
import { MEANING, VERDICTS } from "./verdicts.js";

/** Pixels that the bars above and below leave free, and the width of an average token, in units of the font's size. */
const BARS = 160;
const TOKEN = 2.1;

export class Screen {
  #page;
  #work;
  #answer;
  #scrolling = 0;
  /** Another session has come, and its first token is not selected yet. */
  #fresh = false;

  constructor(page) {
    this.#page = page;
    this.#work = page.work;
    this.#answer = page.answer;
    this.#work.addEventListener("session", (event) => this.#showSession(event.detail));
    this.#work.addEventListener("tokens", (event) => this.#showTokens(event.detail));
    this.#work.addEventListener("head", () => this.#showHead());
    this.#work.addEventListener("stream", () => this.#showStream());
    this.#work.addEventListener("over", () => this.#showOver());
  }

  /** The answer is as the model first gave it: accepting it means "this is right". */
  get untouched() {
    const { anchors, ties, node, nodes } = this.#work.session;
    return anchors.length === 0 && ties.length === 0 && nodes[node].parent === null;
  }

  /** "Decided: ...": what was decided, and how to change it. */
  get decided() {
    return `Decided: ${MEANING[this.#work.session.status]}. Press u to change it.`;
  }

  /** About as many tokens of an answer as are seen at once. */
  get tokens() {
    const { fontSize, lineHeight } = getComputedStyle($("answer"));
    const lines = (window.innerHeight - BARS) / parseFloat(lineHeight);
    const width = $("answer").clientWidth || window.innerWidth;
    return Math.max(40, Math.round((lines * width) / (TOKEN * parseFloat(fontSize))));
  }

  #showSession(another) {
    const { session } = this.#work;
    $("empty").hidden = true;
    for (const id of ["work", "side", "actions"]) $(id).hidden = false;
    if (another) {
      this.#page.cursor.close();
      showPrompt($("prompt"), session.prompt);
      window.history.replaceState(null, "", `#session=${session.id}`);
      this.#answer.clear();
      tell($("action-trouble"), null);
      this.#fresh = true;
      this.#page.tabs.go("answer");
    }
    this.#page.picker.alternatives.forget();
    this.#showTokens(0);
    this.#showHead();
    this.#showStream();
    if (another) {
      this.#scrollToQuestion();
      this.#refreshProgress();
    }
  }

  /** A long chat must not hide the answer: begin at its last message then. */
  #scrollToQuestion() {
    window.scrollTo(0, 0);
    const hidden = $("answer").getBoundingClientRect().top > window.innerHeight * 0.6;
    const messages = $("prompt").querySelectorAll(".message:not(.seen)");
    if (hidden) messages[messages.length - 1]?.scrollIntoView({ block: "start" });
  }

  #showTokens(from) {
    const follow = this.#work.following && this.#endIsSeen();
    if (this.#answer.show(this.#work.tokens, from)) this.#page.picker.close();
    if (follow) this.#keepEndInSight();
    if (this.#fresh && this.#answer.length > 0) {
      this.#fresh = false;
      this.#page.cursor.begin();
    }
    this.showLegend();
    this.showWhere();
  }

  #endIsSeen() {
    const last = this.#answer.element(this.#answer.length - 1);
    if (this.#scrolling || !last) return false;
    const { bottom } = last.getBoundingClientRect();
    return bottom < window.innerHeight && bottom > window.innerHeight / 2;
  }

  #keepEndInSight() {
    // Once a frame, however many tokens came in it.
    this.#scrolling = requestAnimationFrame(() => {
      this.#scrolling = 0;
      $("stream-line").scrollIntoView({ block: "nearest" });
    });
  }

  #showHead() {
    const { session, open } = this.#work;
    if (!session) return;
    const { picker, notes, tabs, cursor } = this.#page;
    this.#answer.markAnchors(session.anchors);
    this.showLegend();
    if (picker.isOpen) picker.refreshAnchor(this.#work.anchorAt(this.#answer.selected));
    showHistory($("history"), session, (node) => this.#page.step("move", { node }));
    showAnchors($("anchors"), session.anchors, this.#answer, session.tokens, (position) => cursor.goTo(position));
    $("anchor-count").textContent = session.anchors.length || "";
    notes.show();
    $("accept-text").textContent = this.untouched ? "Right as it is" : "Accept";
    $("do-accept").disabled = !open || !session.ended;
    $("do-skip").disabled = !open;
    $("do-reject").disabled = !open;
    $("do-undo").disabled = !this.#work.canUndo;
    $("do-redo").disabled = !this.#work.canRedo;
    $("answer").classList.toggle("decided", !open);
    tell($("decided-text"), open ? null : this.decided);
    $("decided").hidden = open;
    $("instruction").hidden = !open || localStorage.getItem("corrected") !== null || session.anchors.length > 0;
    this.showWhere();
    if (tabs.current === "changes") tabs.refresh();
  }

  #showStream() {
    const { session, following, paused, streamError, open } = this.#work;
    if (!session) return;
    tell($("stream-error"), streamError?.message);
    const waiting = open && !session.ended && !following;
    $("stream-line").hidden = !(following || waiting || session.truncated);
    $("stream-line").classList.toggle("running", following);
    const stopped = paused ? "A pause at the end of a sentence: is it right so far?" : "Stopped here";
    $("stream-text").textContent = following ? "The model is answering" : waiting ? stopped : "Cut at the token limit";
    $("stream-button").hidden = !(following || waiting || (open && session.truncated));
    const [text, key] = following ? ["Stop", "."] : [streamError ? "Try again" : "Go on", "c"];
    $("stream-button").replaceChildren(text, make("kbd", {}, key));
    const corrected = session.nodes[session.node].parent !== null;
    $("stream-end").hidden = !(waiting || (following && corrected));
    $("stream-end").replaceChildren(...(following ? ["End behind the correction", make("kbd", {}, "f")] : ["End here"]));
    if (!following) this.#answer.calibrate();
    $("answer").setAttribute("aria-busy", String(following));
    if (!following && session.ended) speak(`Answer complete, ${session.length} tokens.`);
    else if (paused) speak("A pause at the end of a sentence. Press c to go on.");
    this.#showHead();
  }

  /** Above the answer: how long it is, or which token is selected. */
  showWhere() {
    const { session, tokens } = this.#work;
    const position = this.#answer.selected;
    // Tokens are numbered from 0, as in records, in the history and in the terminal.
    const selected = position === null ? [] : [`Token ${position}`, percent(tokens[position]?.p)];
    const parts = [VERDICTS[session.status], ...selected, `${tokens.length} tokens`];
    $("where").textContent = parts.filter(Boolean).join(" · ");
  }

  /** What the tint means in this answer. */
  showLegend() {
    const { rare } = this.#answer;
    const some = rare > 0 ? `up to ${percent(rare)}` : "the model was sure of all";
    const texts = { rarest: some, probability: "below 90 %", nothing: "" };
    $("legend-text").textContent = texts[$("tint").value];
    $("legend-swatches").hidden = $("tint").value === "nothing";
  }

  async #showOver() {
    this.#page.cursor.close();
    for (const id of ["work", "side", "actions"]) $(id).hidden = true;
    window.history.replaceState(null, "", window.location.pathname);
    const button = make("button", { type: "button", class: "primary" }, "Look again");
    button.addEventListener("click", () => this.#page.next());
    const facts = make("p", { class: "quiet" });
    $("empty").replaceChildren(make("h2", {}, "Nothing left to do"), facts, button,
      make("p", {}, make("a", { href: "/api/export", download: "records.jsonl" }, "Download the records")));
    $("empty").hidden = false;
    $("empty").focus();
    const progress = await this.#refreshProgress();
    if (!progress) return;
    const { done, items, seconds } = progress;
    facts.textContent = `${done} of ${items} items are done, in ${minutes(seconds)} minutes of work.`;
  }

  async #refreshProgress() {
    const progress = await get("/api/progress").catch(() => null); // the next item asks again
    if (progress) showProgress(progress);
    return progress;
  }
}
