// Everything that can be done, with its key: keyboard, palette and help all read this one list.

import { isField } from "./dom.js";
import { digitWithAlt } from "./picker.js";
import { goesOn, typed } from "./typing.js";

/** `can` (a function) says whether it makes sense now; `go` does it; `hidden` leaves it out of the palette. */
export function commands(page) {
  const { work } = page;
  const selected = () => page.answer.selected !== null;
  const shown = () => work.session !== null;
  const open = () => work.open;
  const stopped = () => open() && !work.following && (!work.session.ended || work.session.truncated);
  return [
    { name: "Accept, or confirm as right", key: "a", can: open, go: () => page.decide("accept") },
    { name: "End the answer behind the selected token, or behind the correction just made", key: "f", can: open,
      go: () => page.endHere() },
    { name: "Reject", key: "x", can: open, go: () => page.decide("reject") },
    { name: "Skip", key: "s", can: open, go: () => page.decide("skip") },
    { name: "Undo", key: "u", can: () => work.busy || work.canUndo, go: () => page.undo() },
    { name: "Redo", key: "r", can: () => work.busy || work.canRedo, go: () => page.redo() },
    { name: "Less confidence", key: "[", can: open, go: () => page.weigh(-1) },
    { name: "More confidence", key: "]", can: open, go: () => page.weigh(1) },
    { name: "Next doubtful token", key: "n", can: shown, go: () => page.cursor.doubtful(1) },
    { name: "Previous doubtful token", key: "p", can: shown, go: () => page.cursor.doubtful(-1) },
    { name: "Stop the continuation", key: ".", can: () => work.following, go: () => page.step("stop") },
    { name: "Go on with the answer", key: "c", can: stopped, go: () => page.goOn() },
    { name: "The prompt as the model sees it", key: "v", can: shown, go: () => page.togglePrompt() },
    { name: "Changes against the first answer", key: "d", can: shown, go: () => page.toggleTab("changes") },
    { name: "Compare base and tuned model", key: "k", can: () => shown() && page.me.compare,
      go: () => page.toggleTab("compare") },
    { name: "Back to the item before", key: "b", can: () => page.before !== null, go: () => page.back() },
    { name: "Queue", key: "q", can: () => true, go: () => page.queue.open() },
    { name: "Commands", key: "/", can: () => true, go: () => page.palette.open(), hidden: true },
    { name: "Help", key: "?", can: () => true, go: () => page.help.open() },
    { name: "Write a note", key: "e", can: open, go: () => page.focusNote() },
    { name: "Unlock this item", key: "", can: () => shown() && !open(), go: () => page.step("reopen") },
    { name: "Dots for all spaces, or only near the selected token", key: "w", can: () => true,
      go: () => page.toggleMarks() },
    { name: "Tint the rarest tenth, by probability, or nothing", key: "m", can: () => true, go: () => page.nextTint() },
    { name: "Pause long continuations after a screen, or never", key: "", can: () => true,
      go: () => page.togglePause() },
    { name: "Copy the answer", key: "y", can: shown, go: () => page.copy() },
    { name: "Light or dark", key: "t", can: () => true, go: () => page.theme.toggle() },
    { name: "Import prompts, records or a lawftrack data set", key: "", can: () => true,
      go: () => page.imports.open() },
    { name: "Train on what is accepted, compare base and tuned model", key: "", can: () => true,
      go: () => page.training.open() },
    { name: "Download all records", key: "", can: () => true, go: () => { window.location.href = "/api/export"; } },
    { name: "Type what should stand there", key: "Enter", can: () => open() && selected(), go: () => page.cursor.type(), hidden: true },
  ];
}

/** What changes an answer: on a decided one these keys say so. */
const CHANGES = ["a", "x", "s", "f", "[", "]", "e", "Enter"];
const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];

const work = (page) => page.work.session !== null;

/** A region that arrow keys scroll while it has the focus. */
const scrolls = (element) => element !== document.body && element.scrollHeight > element.clientHeight + 1
  && ["auto", "scroll"].includes(getComputedStyle(element).overflowY);

/** Keys of the page. Fields and dialogs keep theirs. */
export function listen(page, list) {
  const byKey = new Map(list.filter((command) => command.key).map((command) => [command.key, command]));
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || isField(event.target) || event.isComposing) return;
    const { key } = event;
    const onAnswer = document.getElementById("answer").contains(event.target) && !event.target.matches(".fold");
    const free = onAnswer || event.target === document.body; // no button, fold or region has a use for this key
    const selected = page.answer.selected !== null;
    const alt = free && selected ? digitWithAlt(event) : null;
    if (alt !== null) page.cursor.digit(alt, true);
    else if (event.ctrlKey || event.metaKey || event.altKey) return;
    else if (key === "Escape") page.cursor.escape();
    else if (MOVES.includes(key) && work(page) && !scrolls(event.target)) page.cursor.move(key);
    else if (key === "Enter" && !free) return;
    else if (key.length === 1 && goesOn(event)) { /* the rest of what was typed in a field that has closed */ }
    else if (free && selected && /^\d$/.test(key)) {
      page.cursor.digit(key);
      typed(event); // if it was meant as text, so is what follows
    } else if (key.length === 1 && !page.singleKeys) return;
    else if (byKey.get(key)?.can()) {
      // A key held down repeats steps that can be undone one by one, but decides only once.
      if (!event.repeat || "ur[]np".includes(key)) byKey.get(key).go();
    } else if (CHANGES.includes(key) && page.work.decided) page.sayDecided();
    else return;
    event.preventDefault();
  });
}
