// The queue: what waits, what is done, who has what.

import { closeButton, closeOutside } from "./dialogs.js";
import { $, make, minutes, percent, tell } from "./dom.js";
import { get } from "./api.js";
import { VERDICTS } from "./verdicts.js";

const PAGE = 50;
const ORDERS = { queue: "In order", uncertain: "Least certain first", probability: "Lowest probability first" };

export class Queue {
  #dialog;
  #open;
  #offset = 0;

  /** `open(item)` when one is chosen. */
  constructor(dialog, open) {
    this.#dialog = dialog;
    this.#open = open;
    const orders = Object.entries(ORDERS).map(([value, text]) => make("option", { value }, text));
    this.order = make("select", { id: "queue-order" }, ...orders);
    this.order.value = localStorage.getItem("order") ?? "queue";
    this.order.addEventListener("change", () => {
      localStorage.setItem("order", this.order.value);
      this.#offset = 0;
      this.#fill();
    });
    this.facts = make("p", { class: "quiet" });
    this.agreement = make("p", { class: "quiet", hidden: true });
    this.trouble = make("p", { class: "trouble", role: "alert", hidden: true });
    this.list = make("ol", { class: "queue-list" });
    this.more = make("button", { type: "button", class: "plain", hidden: true }, "Show more");
    this.more.addEventListener("click", () => this.#fill(true));
    dialog.append(
      make("div", { class: "dialog-head" }, make("h2", { id: "queue-title" }, "Queue"), closeButton(dialog)),
      this.facts, this.agreement, make("p", {}, make("label", { for: "queue-order" }, "Next comes "), this.order),
      this.trouble, this.list, this.more,
    );
    closeOutside(dialog);
  }

  open() {
    this.#offset = 0;
    this.#dialog.showModal();
    this.#fill();
    this.#agree();
  }

  /** How far people agree, where several did the same items. */
  async #agree() {
    const { pairs, same_position: place, same_token: token, same_text: text } = await get("/api/agreement")
      .catch(() => ({ pairs: 0 })); // what is broken is told by the list itself
    tell(this.agreement, pairs === 0 ? null
      : `Where several people did the same item (${pairs} ${pairs === 1 ? "pair" : "pairs"} of answers): `
        + `same first error ${percent(place)}, same token there ${percent(token)}, same text in the end ${percent(text)}.`);
  }

  async #fill(more = false) {
    tell(this.trouble, null);
    try {
      const [progress, { total, items }] = await Promise.all([
        get("/api/progress"),
        get("/api/queue", { order: this.order.value, offset: more ? this.#offset : 0, limit: PAGE }),
      ]);
      showProgress(progress);
      const { done, items: all, accept, keep, reject, skip, mean_seconds: mean } = progress;
      this.facts.textContent = `${done} of ${all} done: ${accept} corrected, ${keep} kept, ${reject} rejected; `
        + `${skip} skipped. ${minutes(mean ?? 0)} minutes an item.`;
      const rows = items.map((item) => this.#row(item));
      if (more) this.list.append(...rows);
      else this.list.replaceChildren(...rows);
      this.#offset = (more ? this.#offset : 0) + items.length;
      this.more.hidden = this.#offset >= total;
    } catch (error) {
      tell(this.trouble, error.message);
    }
  }

  #row(item) {
    const sure = item.lowest_probability === null ? "" : `least sure ${percent(item.lowest_probability)}`;
    const held = item.held_by.length > 0 && item.status === "waiting" ? `with ${item.held_by.join(", ")}` : "";
    const button = make("button", { type: "button", class: `queue-row ${item.status}` },
      make("span", { class: "state" }, VERDICTS[item.verdict]?.toLowerCase() ?? item.status),
      make("span", { class: "queue-title", dir: "auto" }, item.title || `Item ${item.id}`),
      make("span", { class: "quiet" }, item.problem ?? (held || sure)));
    button.addEventListener("click", () => {
      this.#dialog.close();
      this.#open(item.id);
    });
    return make("li", {}, button);
  }
}

/** The bar at the top of the page. */
export function showProgress({ items, done, mean_seconds: mean }) {
  const bar = $("progress");
  bar.setAttribute("aria-valuemax", String(items));
  bar.setAttribute("aria-valuenow", String(done));
  bar.setAttribute("aria-valuetext", `${done} of ${items} items done`);
  bar.firstElementChild.style.width = items > 0 ? `${(done / items) * 100}%` : "0";
  $("progress-text").textContent = `${done} / ${items}`;
  $("progress-text").title = mean ? `${minutes(mean)} minutes an item` : "";
}
