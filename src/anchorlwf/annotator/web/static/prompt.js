// The chat before the answer: every role, tool calls and results, thinking folded.

import { make } from "./dom.js";

const ROLES = { system: "System", user: "User", assistant: "Assistant", tool: "Tool result", developer: "Developer" };
const LONG = 1500;

const pretty = (value) => {
  if (typeof value !== "string") return JSON.stringify(value, null, 2);
  try {
    return JSON.stringify(JSON.parse(value), null, 2); // arguments often come as JSON within a string
  } catch {
    return value;
  }
};

/** Content is a string, a list of parts, or nothing. */
function textOf(content) {
  if (content === null || content === undefined) return "";
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return pretty(content);
  return content.map((part) => (typeof part === "string" ? part : part?.text ?? pretty(part))).join("\n");
}

const prose = (text) => make("div", { class: "prose", dir: "auto" }, text);

const fold = (title, ...inside) => make("details", {}, make("summary", {}, title), ...inside);

function parts(text) {
  const found = [];
  const thinking = /<think(?:ing)?>([\s\S]*?)(?:<\/think(?:ing)?>|$)/g;
  let at = 0;
  for (const match of text.matchAll(thinking)) {
    if (match.index > at) found.push(prose(text.slice(at, match.index).trim()));
    found.push(fold("Thinking", prose(match[1].trim())));
    at = match.index + match[0].length;
  }
  const rest = text.slice(at).trim();
  // A very long message would push the answer off the screen.
  if (rest.length > LONG) found.push(prose(`${rest.slice(0, 600)}…`), fold("All of it", prose(rest)));
  else if (rest !== "") found.push(prose(rest));
  return found;
}

function toolCall(call) {
  const { name = "tool", arguments: given = {} } = call.function ?? call;
  return make("div", { class: "call" }, make("span", { class: "call-name" }, `${name}`),
    make("pre", { tabIndex: 0, ariaLabel: `Arguments of ${name}` }, pretty(given)));
}

function message(entry) {
  const role = ROLES[entry.role] ?? String(entry.role);
  const label = entry.name ? `${role} · ${entry.name}` : role;
  const isTool = entry.role === "tool";
  const text = textOf(entry.content);
  const thought = textOf(entry.reasoning_content ?? entry.thinking);
  const body = isTool && text !== "" ? [make("pre", { tabIndex: 0, ariaLabel: label }, pretty(text))] : parts(text);
  if (thought !== "") body.unshift(fold("Thinking", prose(thought)));
  const calls = (entry.tool_calls ?? []).map(toolCall);
  return make("article", { class: `message ${isTool ? "tool" : entry.role === "user" ? "user" : ""}` },
    make("h2", { class: "role" }, label), ...body, ...calls);
}

/** What marks in the prompt mean. */
const NOTICES = {
  date: "a date that the chat template prints",
  quoted: "looks like a marker, and is read as text",
  forged: "text of the message that is read as a marker",
};

/** The prompt as the model reads it: what are special tokens, and not text that looks like them, stands in frames. */
function asTheModelSeesIt(rendered, date) {
  const shown = rendered.map(({ text, special, notice }) => {
    const part = make("span", { class: special ? "special" : "" }, text);
    return notice === null ? part : make("mark", { class: notice, title: NOTICES[notice] }, part);
  });
  const found = Object.keys(NOTICES).filter((notice) => rendered.some((part) => part.notice === notice));
  const legend = found.map((notice) => make("li", {}, make("mark", { class: notice }, notice), ` ${NOTICES[notice]}`));
  const summary = make("summary", {}, date ? `As the model sees it · dated ${date}` : "As the model sees it");
  summary.append(make("kbd", {}, "v"));
  const body = make("pre", { class: "rendered", dir: "auto", tabIndex: 0, ariaLabel: "The prompt as the model sees it" },
    ...shown);
  const notes = legend.length > 0 ? [make("ul", { class: "notices" }, ...legend)] : [];
  return make("article", { class: "message seen" }, make("details", {}, summary, ...notes, body));
}

/** Show a session's prompt. */
export function showPrompt(root, { messages, tools = [], tags = [], rendered = [], date = null, remarks = [] }) {
  const found = messages.map(message);
  if (tools.length > 0) {
    const described = tools.map((tool) => tool.function ?? tool);
    const shown = described.map((tool) => toolCall({ name: tool.name, arguments: tool }));
    found.unshift(make("article", { class: "message" }, fold(`Tools · ${tools.length}`, ...shown)));
  }
  if (tags.length > 0) {
    const chips = tags.map((tag) => make("span", { class: "tag" }, tag));
    found.unshift(make("p", { class: "tags" }, make("span", { class: "unseen" }, "Tags: "), ...chips));
  }
  found.push(...remarks.map((remark) => make("p", { class: "trouble" }, remark)), asTheModelSeesIt(rendered, date));
  root.replaceChildren(...found);
}
