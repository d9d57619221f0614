// The tree of answers, and the anchors of the one on the screen.

import { chip } from "./answer.js";
import { make, percent } from "./dom.js";

/** The nodes in reading order with their column: a first child goes on below its parent, others branch off. */
export function layOut(nodes) {
  const children = new Map();
  for (const node of nodes) {
    if (node.parent !== null) children.set(node.parent, [...(children.get(node.parent) ?? []), node]);
  }
  const rows = [];
  // A stack of its own: a long session is deeper than recursion would like.
  const waiting = [[nodes[0], 0]];
  while (waiting.length > 0) {
    const [node, column] = waiting.pop();
    rows.push([node, column]);
    const next = children.get(node.id) ?? [];
    // The last pushed comes first: branches, each whole, then the line itself goes on.
    if (next.length > 0) waiting.push([next[0], column]);
    for (const branch of next.slice(1)) waiting.push([branch, column + 1]);
  }
  return rows;
}

const short = (text) => {
  const shown = text.replace(/\s+/g, " ");
  return shown.length > 24 ? `${shown.slice(0, 23)}…` : shown === " " || shown === "" ? "␣" : shown;
};

function label(node) {
  if (node.parent === null) return [make("span", { class: "node-text" }, "The model's answer")];
  return [make("span", { class: "node-text" }, make("del", { dir: "auto" }, short(node.replaced)), " → ",
    make("ins", { dir: "auto" }, short(node.given)))];
}

/** Draw the tree; `jump(node id)` on a click. */
export function showHistory(root, { nodes, node: current }, jump) {
  const focused = root.contains(document.activeElement);
  const items = layOut(nodes).map(([node, column]) => {
    const tokens = `${node.length} tokens${node.ended ? "" : ", unfinished"}`;
    const button = make("button", { type: "button", class: "node" },
      make("span", { class: "dot", "aria-hidden": "true" }), ...label(node),
      make("span", { class: "quiet" }, node.parent === null ? tokens : `at ${node.position}`));
    button.title = `${tokens}, ${node.anchors} anchors, ${new Date(node.at).toLocaleTimeString()}`;
    if (node.id === current) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => jump(node.id));
    const item = make("li", {}, button);
    item.style.setProperty("--column", column);
    return item;
  });
  root.replaceChildren(make("ul", { "aria-label": "Answers so far" }, ...items));
  if (focused) root.querySelector("[aria-current]")?.focus();
}

/** List the anchors; `go(position)` on a click. */
export function showAnchors(root, anchors, answer, tokens, go) {
  root.replaceChildren(...anchors.map((anchor) => {
    const before = anchor.rejected ? [chip(anchor.rejected, "gone"), " → "] : [];
    const now = tokens[anchor.position];
    const button = make("button", { type: "button", class: "anchor-row" },
      make("span", {}, ...before, now ? chip(answer.whole(anchor.position) ?? now) : `at ${anchor.position}`),
      make("span", { class: "quiet" }, percent(anchor.confidence)));
    button.title = `Token ${anchor.position}, confidence ${anchor.confidence}, by ${anchor.source}`;
    button.addEventListener("click", () => go(anchor.position));
    return make("li", {}, button);
  }));
  if (anchors.length === 0) root.replaceChildren(make("li", { class: "quiet" }, "None yet: click a wrong token."));
}
